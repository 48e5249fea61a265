//! Kubernetes quantities (`64Ki`, `2Mi`, `1.5G`) as bytes.
//!
//! Only what the CRD lets through: a non-negative number with an optional binary or decimal suffix.
//! Source: k8s.io/apimachinery/pkg/api/resource/quantity.go.

/// The bytes that `text` stands for, rounded down; `None` when it is no such quantity.
pub fn bytes(text: &str) -> Option<u64> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit),
        Err(_) => {
            let value = number.parse::<f64>().ok()? * unit as f64;
            (value.is_finite() && value < u64::MAX as f64).then_some(value as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn a_quantity_is_read_as_kubernetes_reads_it() {
        for (text, expected) in [
            ("512", Some(512)),
            ("64Ki", Some(65_536)),
            ("2Mi", Some(2_097_152)),
            ("1.5Mi", Some(1_572_864)),
            ("1M", Some(1_000_000)),
            ("1Gi", Some(1 << 30)),
            ("", None),
            ("Mi", None),
            ("-1Mi", None),
            ("1MB", None),
            ("1.2.3Mi", None),
            ("99999999999999999999Gi", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
