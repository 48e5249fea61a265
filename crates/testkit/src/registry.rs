//! A real registry for tests: Debian's `docker-registry` on a free loopback port, gone when dropped.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::authority::ClientCertificate;

/// The distribution's binary; `make test` installs its package.
const BINARY: &str = "docker-registry";

/// Go needs some milliseconds to start; a busy machine some seconds.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running registry with a directory of its own.
#[derive(Debug)]
pub struct TestRegistry {
    server: Child,
    address: String,
    dir: tempfile::TempDir,
    ca_certificate: Option<PathBuf>,
    client: Option<ClientCertificate>,
}

impl TestRegistry {
    /// A registry that lets everybody pull and push.
    pub fn start() -> Result<TestRegistry> {
        TestRegistry::launch(Setup::default())
    }

    /// A registry that wants this user name and password (HTTP Basic) for everything.
    pub fn start_with_auth(username: &str, password: &str) -> Result<TestRegistry> {
        TestRegistry::launch(Setup {
            auth: Some((username, password)),
            ..Setup::default()
        })
    }

    /// A registry that speaks TLS only, with a certificate for `localhost` and `127.0.0.1` by an authority of its own.
    pub fn start_with_tls() -> Result<TestRegistry> {
        TestRegistry::launch(Setup {
            tls: true,
            ..Setup::default()
        })
    }

    /// The same, and it speaks only to clients with a certificate by [`TestRegistry::client_certificate`]'s authority.
    pub fn start_with_client_certificates() -> Result<TestRegistry> {
        TestRegistry::launch(Setup {
            tls: true,
            client_certificates: true,
            ..Setup::default()
        })
    }

    /// From now on a registry of [`TestRegistry::start_with_auth`] takes this password instead of the one it took.
    pub fn change_password(&self, username: &str, password: &str) -> Result<()> {
        // The registry looks at the file's time at every request.
        write_password(self.dir.path(), username, password)
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The directory in which it keeps its blobs (`docker/registry/v2/blobs/sha256/…`).
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    /// The certificate of the authority of [`TestRegistry::start_with_tls`], as PEM.
    pub fn ca_certificate(&self) -> Option<&Path> {
        self.ca_certificate.as_deref()
    }

    /// A certificate that a registry of [`TestRegistry::start_with_client_certificates`] takes.
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.client.as_ref()
    }

    fn launch(setup: Setup<'_>) -> Result<TestRegistry> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("config.json");
        let (mut json, ca_certificate) = setup.config(dir.path())?;
        let client = match setup.client_certificates {
            true => Some(ClientCertificate::make(dir.path(), "clients")?),
            false => None,
        };
        if let Some(client) = &client {
            json["http"]["tls"]["clientcas"] = serde_json::json!([client.authority]);
        }
        std::fs::write(&config, serde_json::to_vec_pretty(&json)?)?;

        let mut server = Command::new(BINARY)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!("{BINARY} cannot be started; install it: apt-get install docker-registry")
            })?;
        let log = server.stderr.take().context("stderr was piped")?;
        let mut registry = TestRegistry {
            server,
            address: String::new(),
            dir,
            ca_certificate,
            client,
        };
        registry.address = address_in(log)?;
        Ok(registry)
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill, and wait says so.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[derive(Default)]
struct Setup<'a> {
    auth: Option<(&'a str, &'a str)>,
    tls: bool,
    client_certificates: bool,
}

impl Setup<'_> {
    /// The configuration (JSON is YAML), and the authority's certificate if there is one.
    fn config(&self, dir: &Path) -> Result<(serde_json::Value, Option<PathBuf>)> {
        let mut json = serde_json::json!({
            "version": "0.1",
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": {
                "filesystem": { "rootdirectory": dir.join("storage") },
                "delete": { "enabled": true },
            },
            // Foreign layers may be anywhere; by default no manifest that names an address is taken.
            "validation": { "manifests": { "urls": { "allow": ["^https?://"] } } },
            // Port 0: the kernel chooses, and the log says which, so two tests never want the same.
            "http": { "addr": "127.0.0.1:0" },
        });
        if let Some((username, password)) = self.auth {
            write_password(dir, username, password)?;
            json["auth"] = serde_json::json!({ "htpasswd": { "realm": "test", "path": dir.join("htpasswd") } });
        }
        if !self.tls {
            return Ok((json, None));
        }
        let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names)?;
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        json["http"]["tls"] = serde_json::json!({ "certificate": certificate, "key": key });
        Ok((json, Some(certificate)))
    }
}

fn write_password(dir: &Path, username: &str, password: &str) -> Result<()> {
    // The registry takes bcrypt only; 4 is the cheapest cost there is.
    let line = format!("{username}:{}\n", bcrypt::hash(password, 4)?);
    let new = dir.join("htpasswd.new");
    std::fs::write(&new, line)?;
    // Never half a file.
    Ok(std::fs::rename(new, dir.join("htpasswd"))?)
}

/// Waits for the log line that names the address; goes on reading afterwards, so that the registry never blocks on a
/// full pipe.
fn address_in(log: impl std::io::Read + Send + 'static) -> Result<String> {
    let (found, address) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if let Some(address) = listening_on(&line) {
                // Nobody listens any more after the first; the rest of the log is only drained.
                let _ = found.send(Ok(address));
            } else if line.contains("level=fatal") {
                let _ = found.send(Err(line));
            }
        }
    });
    match address.recv_timeout(START_LIMIT) {
        Ok(Ok(address)) => Ok(address),
        Ok(Err(line)) => bail!("{BINARY} ended: {line}"),
        Err(_) => bail!("{BINARY} did not say within {START_LIMIT:?} where it listens"),
    }
}

fn listening_on(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("listening on ")?;
    let address: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':'))
        .collect();
    Some(address)
}
