//! What the container runs: arguments, environment, directory.

use crate::{BundleError, Wishes, spec};
use oci_spec::image::Config;

/// Where programs are looked for unless the image says so (Docker's, containerd's and Podman's default).
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Says little, but every terminal can it.
const TERM: &str = "TERM=xterm";

/// What an image runs unless it is told otherwise, for who wants to know beforehand which of its files that reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The entrypoint with the arguments behind it.
    pub words: Vec<String>,
    /// The directories of its `PATH`, then the one that it works in.
    pub dirs: Vec<String>,
}

impl Command {
    /// Of an image with this configuration.
    ///
    /// # Errors
    /// When there is none, or it names nothing to run.
    pub fn of(config: &[u8]) -> Result<Self, BundleError> {
        let config = spec::parse(config)?.config().clone().unwrap_or_default();
        let wishes = Wishes::default();
        // The last one counts, see `environment`, which takes its time for a long list.
        let mut set = config.env().iter().flatten().rev();
        let path = set.find_map(|variable| variable.strip_prefix("PATH="));
        let path = path.or_else(|| PATH.strip_prefix("PATH="));
        let mut dirs: Vec<_> = path
            .iter()
            .flat_map(|path| path.split(':'))
            .map(str::to_owned)
            .collect();
        dirs.push(directory(&config, &wishes));
        Ok(Self {
            words: arguments(&config, &wishes)?,
            dirs,
        })
    }
}

/// The entrypoint with the arguments behind it.
pub(crate) fn arguments(image: &Config, wishes: &Wishes) -> Result<Vec<String>, BundleError> {
    let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let (mut all, default) = match &wishes.entrypoint {
        // As in Docker: the image's arguments were meant for its own entrypoint.
        Some(entrypoint) => (vec![entrypoint.clone()], Vec::new()),
        None => (of(image.entrypoint()), of(image.cmd())),
    };
    all.extend(match wishes.arguments.as_slice() {
        [] => default,
        wanted => wanted.to_vec(),
    });
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => Err(BundleError::NoCommand),
    }
}

/// The image's environment, what the user sets, and what programs take for granted.
pub(crate) fn environment(image: &Config, wishes: &Wishes, home: Option<&str>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let image = image.env().iter().flatten().cloned();
    let wished = wishes.environment.iter();
    for variable in image.chain(wished.map(|(name, value)| format!("{name}={value}"))) {
        // Runtimes refuse what has no name or no value.
        let Some(name) = name_of(&variable).filter(|name| !name.is_empty()) else {
            continue;
        };
        match all.iter().position(|other| name_of(other) == Some(name)) {
            Some(at) => all[at] = variable,
            None => all.push(variable),
        }
    }
    let mut default = |variable: String| {
        if !all.iter().any(|other| name_of(other) == name_of(&variable)) {
            all.push(variable);
        }
    };
    default(PATH.to_owned());
    default(format!("HOME={}", home.unwrap_or("/")));
    if wishes.terminal {
        default(TERM.to_owned());
    }
    all
}

fn name_of(variable: &str) -> Option<&str> {
    variable.split_once('=').map(|(name, _)| name)
}

/// The working directory, which the runtime-spec wants absolute; images in the wild have relative ones.
pub(crate) fn directory(image: &Config, wishes: &Wishes) -> String {
    let image = image.working_dir().as_deref();
    let wanted = wishes.directory.as_deref().or(image).unwrap_or_default();
    match wanted.starts_with('/') {
        true => wanted.to_owned(),
        false => format!("/{wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(json: serde_json::Value) -> Config {
        serde_json::from_value(json).unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn arguments_take_the_place_of_the_images_own_and_the_entrypoint_stays() {
        let both = image(serde_json::json!({"Entrypoint": ["/entry", "-x"], "Cmd": ["serve"]}));
        let run = |arguments: &[&str], entrypoint: Option<&str>| {
            let wishes = Wishes {
                arguments: words(arguments),
                entrypoint: entrypoint.map(str::to_owned),
                ..Wishes::default()
            };
            super::arguments(&both, &wishes).unwrap()
        };
        assert_eq!(run(&[], None), ["/entry", "-x", "serve"]);
        assert_eq!(
            run(&["sh", "-c", "id"], None),
            ["/entry", "-x", "sh", "-c", "id"]
        );
        assert_eq!(run(&[], Some("sh")), ["sh"]);
        assert_eq!(run(&["-c", "id"], Some("sh")), ["sh", "-c", "id"]);
    }

    #[test]
    fn an_image_without_a_command_is_refused() {
        for nothing in [
            serde_json::json!({}),
            serde_json::json!({"Entrypoint": null, "Cmd": []}),
            serde_json::json!({"Cmd": [""]}),
        ] {
            let said = arguments(&image(nothing), &Wishes::default()).unwrap_err();
            assert!(said.to_string().contains("behind `--`"), "{said}");
        }
    }

    #[test]
    fn the_users_variables_replace_the_images_in_their_place() {
        let image = image(
            serde_json::json!({"Env": ["A=1", "PATH=/only", "no value", "=no name", "A=2", "E="]}),
        );
        let wishes = Wishes {
            environment: vec![("E".into(), "x=y".into()), ("B".into(), String::new())],
            terminal: true,
            ..Wishes::default()
        };
        assert_eq!(
            environment(&image, &wishes, Some("/home/app")),
            [
                "A=2",
                "PATH=/only",
                "E=x=y",
                "B=",
                "HOME=/home/app",
                "TERM=xterm"
            ]
        );
        let bare = environment(&Config::default(), &Wishes::default(), None);
        assert_eq!(bare, [PATH, "HOME=/"]);
    }

    #[test]
    fn an_images_command_is_found_by_its_path_and_where_it_works() {
        let image = |config| {
            let all = serde_json::json!({"architecture": "amd64", "os": "linux", "config": config,
                "rootfs": {"type": "layers", "diff_ids": []}});
            Command::of(all.to_string().as_bytes())
        };
        let command = image(
            serde_json::json!({"Entrypoint": ["entry"], "Cmd": ["node", "app.js"],
            "Env": ["PATH=/bin", "PATH=/opt/bin:/usr/bin"], "WorkingDir": "/srv"}),
        );
        assert_eq!(
            command.unwrap(),
            Command {
                words: words(&["entry", "node", "app.js"]),
                dirs: words(&["/opt/bin", "/usr/bin", "/srv"]),
            }
        );
        let usual = image(serde_json::json!({"Cmd": ["sh"]})).unwrap();
        assert_eq!(
            usual.dirs.join(":"),
            format!("{}:/", &PATH["PATH=".len()..])
        );
        image(serde_json::json!({})).unwrap_err();
        Command::of(b"").unwrap_err();
        Command::of(b"{}").unwrap_err();
    }

    #[test]
    fn the_directory_is_absolute() {
        let at = |image_has: Option<&str>, wish: Option<&str>| {
            let image = image(serde_json::json!({ "WorkingDir": image_has }));
            let wishes = Wishes {
                directory: wish.map(str::to_owned),
                ..Wishes::default()
            };
            directory(&image, &wishes)
        };
        assert_eq!(at(None, None), "/");
        assert_eq!(at(Some(""), None), "/");
        assert_eq!(at(Some("srv/app"), None), "/srv/app");
        assert_eq!(at(Some("/srv"), Some("/tmp")), "/tmp");
    }
}
