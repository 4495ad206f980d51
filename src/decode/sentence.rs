//! Where a sentence ends.

/// Words whose full stop does not end a sentence.
const ABBREVIATIONS: [&str; 14] = [
    "approx", "dr", "e.g", "etc", "fig", "i.e", "mr", "mrs", "ms", "no", "prof", "st", "vs", "u.s",
];

/// Finds complete sentences in text that grows.
///
/// A sentence is complete when `.`, `!`, `?` or `…` (with closing quotes or brackets) is followed
/// by white space, or when a CJK full stop or a line end follows some text. `3.5` and the usual
/// abbreviations do not end one.
#[derive(Debug, Default)]
pub struct SentenceEnd;

impl SentenceEnd {
    /// Byte length of `text` up to the end of its first complete sentence.
    pub fn first(text: &str) -> Option<usize> {
        ends(text).next()
    }

    /// Byte length of `text` up to the end of its last complete sentence; the end of the text
    /// counts as white space.
    pub fn last(text: &str) -> Option<usize> {
        let closed = format!("{text} ");
        ends(&closed).last()
    }
}

fn ends(text: &str) -> impl Iterator<Item = usize> {
    let bytes = text.len();
    text.char_indices().filter_map(move |(at, c)| {
        let end = at + c.len_utf8();
        match c {
            '。' | '！' | '？' => Some(end),
            '\n' => (!text[..at].trim().is_empty()).then(|| text[..at].trim_end().len()),
            '.' | '!' | '?' | '…' => {
                let rest = &text[end..];
                let closers = rest.len()
                    - rest
                        .trim_start_matches(['"', '\'', ')', ']', '”', '’'])
                        .len();
                let end = end + closers;
                let next = text[end..].chars().next();
                let complete = end < bytes && next.is_some_and(char::is_whitespace);
                (complete && !(c == '.' && is_abbreviation(&text[..at]))).then_some(end)
            }
            _ => None,
        }
    })
}

fn is_abbreviation(before: &str) -> bool {
    let word = before.rsplit(char::is_whitespace).next().unwrap_or("");
    let word = word.trim_start_matches(['(', '"', '[']).to_lowercase();
    ABBREVIATIONS.contains(&word.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_sentence_ends() {
        let cases = [
            ("A car. Then", Some("A car."), Some("A car.")),
            ("A car is 3.5 m long", None, None),
            ("Three. Two! One", Some("Three."), Some("Three. Two!")),
            (
                "He said \"go.\" Then",
                Some("He said \"go.\""),
                Some("He said \"go.\""),
            ),
            ("Signs, e.g. stop", None, None),
            ("No stop yet.", None, Some("No stop yet.")),
            ("Line one\nline", Some("Line one"), Some("Line one")),
            ("\n\nText", None, None),
            ("車です。木", Some("車です。"), Some("車です。")),
            ("", None, None),
        ];
        for (text, first, last) in cases {
            assert_eq!(
                SentenceEnd::first(text).map(|n| &text[..n]),
                first,
                "{text:?}"
            );
            assert_eq!(
                SentenceEnd::last(text).map(|n| &text[..n]),
                last,
                "{text:?}"
            );
        }
    }
}
