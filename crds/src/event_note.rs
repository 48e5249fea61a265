//! What the API lets an event say; the operator and the node plugin both write events.

/// A message as an event may carry it: the API refuses notes of more than 1024 bytes (events/v1, types.go).
pub fn event_note(message: &str) -> String {
    const MAX: usize = 1000;
    if message.len() <= MAX {
        return message.to_owned();
    }
    let end = (0..=MAX)
        .rev()
        .find(|end| message.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}…", &message[..end])
}
