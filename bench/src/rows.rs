//! A measured value, and the table of them.

use serde::Serialize;

/// One measured value.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Which bench.
    pub bench: &'static str,
    /// Which image or situation.
    pub case: String,
    /// Who was measured.
    pub system: &'static str,
    /// What was measured.
    pub metric: &'static str,
    /// The value; none when the system could not be had.
    pub value: Option<f64>,
    /// Its unit.
    pub unit: &'static str,
    /// What is promised, as text.
    pub target: Option<String>,
    /// Whether the promise is kept.
    pub ok: Option<bool>,
    /// Why there is no value, or how to read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// A value without a promise.
    pub fn new(
        bench: &'static str,
        case: &str,
        system: &'static str,
        metric: &'static str,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            bench,
            case: case.to_owned(),
            system,
            metric,
            value: Some(value),
            unit,
            target: None,
            ok: None,
            note: None,
        }
    }

    /// Promises at most `limit`.
    pub fn at_most(mut self, limit: f64) -> Self {
        self.target = Some(format!("≤ {}", number(limit)));
        self.ok = self.value.map(|value| value <= limit);
        self
    }

    /// Promises at least `limit`.
    pub fn at_least(mut self, limit: f64) -> Self {
        self.target = Some(format!("≥ {}", number(limit)));
        self.ok = self.value.map(|value| value >= limit);
        self
    }

    /// Says how to read the value.
    pub fn with_note(mut self, note: &str) -> Self {
        self.note = Some(note.to_owned());
        self
    }

    /// A system that could not be measured.
    pub fn missing(bench: &'static str, case: &str, system: &'static str, why: &str) -> Self {
        Self {
            value: None,
            note: Some(why.to_owned()),
            ..Self::new(bench, case, system, "–", 0.0, "")
        }
    }
}

/// The rows of a system, or the one that says why there are none.
pub fn or_missing(
    bench: &'static str,
    case: &str,
    system: &'static str,
    rows: anyhow::Result<Vec<Row>>,
) -> Vec<Row> {
    rows.unwrap_or_else(|error| vec![Row::missing(bench, case, system, &format!("{error:#}"))])
}

/// A line on stderr, so that a long bench is seen to go on.
pub fn progress(doing: &str) {
    eprintln!("   {doing}");
}

/// Prints the rows as a table on stdout.
pub fn print(rows: &[Row]) {
    println!(
        "{:<22} {:<14} {:<22} {:>14} {:<8} {:<12}",
        "case", "system", "metric", "value", "unit", "target"
    );
    for row in rows {
        let value = row.value.map_or_else(|| "not available".to_owned(), number);
        let verdict = match row.ok {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        let target = row.target.as_deref().unwrap_or("");
        let note = row.note.as_deref().unwrap_or("");
        println!(
            "{:<22} {:<14} {:<22} {value:>14} {:<8} {target:<12} {verdict} {note}",
            row.case, row.system, row.metric, row.unit
        );
    }
}

fn number(value: f64) -> String {
    match value {
        v if v.fract() == 0.0 && v.abs() < 1e15 => format!("{v:.0}"),
        v if v.abs() >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.3}"),
    }
}
