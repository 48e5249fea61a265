//! What the `package.json` of a Node.js package names (nodejs.org, "Modules: Packages").

use serde_json::Value;

/// The file that says so.
pub const FILE: &[u8] = b"package.json";
/// Where packages lie that others depend on.
pub const DIR: &[u8] = b"node_modules";
/// Of a longer description nothing is read.
pub const LEN_MAX: u64 = 64 << 10;
/// Who is served, most wanted first, where a package has files for several.
const CONDITIONS: [&str; 4] = ["node", "require", "default", "import"];
/// Conditions within conditions.
const DEPTH_MAX: usize = 8;

/// A package's own description.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// The file that is loaded first, from the package's directory on.
    pub main: String,
    /// The names of packages that are loaded with it.
    pub dependencies: Vec<String>,
}

impl Package {
    /// None of what does not describe a package.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let Value::Object(all) = serde_json::from_slice(json).ok()? else {
            return None;
        };
        let exported = all.get("exports").and_then(|exports| {
            let itself = exports.get(".").unwrap_or(exports);
            first_of(itself, DEPTH_MAX)
        });
        let main = exported.or_else(|| all.get("main")?.as_str());
        let dependencies = all.get("dependencies").and_then(Value::as_object);
        Some(Self {
            main: main.unwrap_or("index.js").to_owned(),
            dependencies: dependencies
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        })
    }
}

/// The file that conditional exports lead to.
fn first_of(exports: &Value, depth: usize) -> Option<&str> {
    let deeper = depth.checked_sub(1)?;
    match exports {
        Value::String(file) => Some(file),
        Value::Object(by_condition) => CONDITIONS
            .iter()
            .find_map(|condition| first_of(by_condition.get(*condition)?, deeper)),
        _ => None,
    }
}

/// Where a package in `dir` looks for one called `name`, nearest first (nodejs.org, "Loading from node_modules folders").
pub fn places_of<'a>(dir: &'a [u8], name: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    let ends = (0..=dir.len())
        .rev()
        .filter(|&at| at == dir.len() || dir[at] == b'/');
    let ancestors = ends.map(|at| &dir[..at]);
    let ancestors = ancestors.filter(|dir| dir.rsplit(|&b| b == b'/').next() != Some(DIR));
    ancestors.map(move |ancestor| [ancestor, b"/", DIR, b"/", name.as_bytes()].concat())
}

/// Whether the package in `dir` is one that others depend on.
pub fn is_dependency(dir: &[u8]) -> bool {
    dir.split(|&b| b == b'/').any(|name| name == DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main_of(json: &str) -> String {
        Package::parse(json.as_bytes()).unwrap().main
    }

    #[test]
    fn a_package_begins_where_node_says() {
        assert_eq!(main_of("{}"), "index.js");
        assert_eq!(main_of(r#"{"main": "lib/a"}"#), "lib/a");
        assert_eq!(main_of(r#"{"main": "a", "exports": "./b.js"}"#), "./b.js");
        assert_eq!(
            main_of(
                r#"{"exports": {".": {"import": "./a.mjs", "node": {"types": "./t", "require": "./b.cjs"}}}}"#
            ),
            "./b.cjs"
        );
        assert_eq!(
            main_of(r#"{"main": 7, "exports": {"./sub": "./b.js"}}"#),
            "index.js"
        );
        let deep = (0..100).fold(r#""./a.js""#.to_owned(), |inner, _| {
            format!(r#"{{"node": {inner}}}"#)
        });
        assert_eq!(main_of(&format!(r#"{{"exports": {deep}}}"#)), "index.js");
    }

    #[test]
    fn what_describes_no_package_is_none() {
        for other in ["", "[]", "{", r#""main""#] {
            assert_eq!(Package::parse(other.as_bytes()), None, "{other}");
        }
        let odd = Package::parse(br#"{"dependencies": ["a"]}"#).unwrap();
        assert!(odd.dependencies.is_empty());
    }

    #[test]
    fn dependencies_are_looked_for_as_node_does() {
        let places: Vec<_> = places_of(b"/app/node_modules/send/node_modules/@a/b", "ms")
            .map(|place| String::from_utf8(place).unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "/app/node_modules/send/node_modules/@a/b/node_modules/ms",
                "/app/node_modules/send/node_modules/@a/node_modules/ms",
                "/app/node_modules/send/node_modules/ms",
                "/app/node_modules/ms",
                "/node_modules/ms",
            ]
        );
        let odd: Vec<_> = places_of(b"/my_node_modules", "ms").collect();
        assert_eq!(odd[0], b"/my_node_modules/node_modules/ms");
        assert!(is_dependency(b"/app/node_modules/ms") && !is_dependency(b"/app"));
    }
}
