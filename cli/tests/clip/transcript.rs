//! Commands and what they say, written down so that people can review the wording (`golden/*.txt`).

use crate::scene::{Scene, said};
use std::fmt::Write as _;

/// Collects a transcript in which nothing differs from run to run.
pub struct Transcript<'a> {
    scene: &'a Scene,
    names: Vec<(String, &'static str)>,
    pub text: String,
}

impl<'a> Transcript<'a> {
    pub fn new(scene: &'a Scene) -> Transcript<'a> {
        Transcript {
            scene,
            names: Vec::new(),
            text: String::new(),
        }
    }

    /// Writes `name` for every `value`, a port or a path.
    pub fn call(&mut self, value: impl Into<String>, name: &'static str) {
        self.names.push((value.into(), name));
    }

    /// A line of explanation.
    pub fn heading(&mut self, text: &str) {
        writeln!(self.text, "# {text}").unwrap();
    }

    /// Runs `clip` with these words and writes down what it says; its exit code.
    pub fn run(&mut self, words: &str) -> i32 {
        let said = said(self.scene.clip(words.split(' ')).output().unwrap());
        self.note(
            words,
            &format!("{}{}exit {}\n", said.out, said.err, said.code),
        );
        said.code
    }

    /// Runs `clip`, which must fail so, and leave nothing behind.
    pub fn fail(&mut self, code: i32, words: &str) {
        let before = self.scene.left_behind();
        assert_eq!(self.run(words), code, "{}", self.text);
        let after = self.scene.left_behind();
        assert_eq!(after, before, "left behind by clip {words}");
    }

    /// Writes down what another way of running `clip` gave.
    pub fn note(&mut self, words: &str, said: &str) {
        let text = self.steady(&format!("$ clip {words}\n{said}\n"));
        self.text += &text;
    }

    fn steady(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (value, name) in &self.names {
            text = text.replace(value, name);
        }
        text = text.replace(self.scene.dir.path().to_str().unwrap(), "DIR");
        let lines = text.split('\n').map(steady_line);
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Numbers with a unit become `N`, digests `sha256:…`, a log line's time `TIME`.
fn steady_line(line: &str) -> String {
    const UNITS: [&str; 8] = ["ms", "s", "B", "kB", "MB", "bytes", "bytes)", "%"];
    let words: Vec<&str> = line.split(' ').collect();
    let is_unit = |word: &str| UNITS.contains(&word.trim_end_matches([',', ';', ':', '.']));
    let steady = words.iter().enumerate().map(|(at, word)| {
        let number = word.trim_start_matches('(');
        let numeric = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.');
        match words.get(at + 1) {
            Some(next) if numeric && is_unit(next) => word.replace(number, "N"),
            _ if at == 0 && is_time(word) => "TIME".to_owned(),
            _ => without_digests(word),
        }
    });
    steady.collect::<Vec<_>>().join(" ")
}

fn is_time(word: &str) -> bool {
    word.len() > 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T'
}

fn without_digests(word: &str) -> String {
    const HEX: usize = 64;
    match word.find("sha256:") {
        Some(at) if word.len() >= at + 7 + HEX => {
            let (before, rest) = (&word[..at + 7], &word[at + 7 + HEX..]);
            format!("{before}…{rest}")
        }
        _ => word.to_owned(),
    }
}
