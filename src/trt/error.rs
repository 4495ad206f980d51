//! From the shim's `code|message` to [`Error`].

use crate::error::Error;

/// The shim's codes that this side acts on; `cpp/shim_error.h` has the whole list.
pub(super) mod code {
    /// The caller asked to stop.
    pub const CANCELLED: &str = "cancelled";
    /// The parser refused the graph without naming a node.
    pub const PARSE: &str = "parse";
}

/// Splits `code|message`.
pub(super) fn from_shim(call: &'static str, exception: &cxx::Exception) -> Error {
    from_text(call, exception.what())
}

fn from_text(call: &'static str, what: &str) -> Error {
    let (code, message) = what.split_once('|').unwrap_or(("internal", what));
    if code == code::CANCELLED {
        return Error::Cancelled;
    }
    Error::Engine {
        call,
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_text_splits_at_the_first_bar_and_maps_cancelled() {
        let Error::Engine { code, message, .. } = from_text("build", "target|sm 8|7") else {
            panic!("not an engine error");
        };
        assert_eq!((code.as_str(), message.as_str()), ("target", "sm 8|7"));
        assert!(matches!(
            from_text("build", "cancelled|x"),
            Error::Cancelled
        ));
        assert!(
            matches!(from_text("build", "x"), Error::Engine { code, .. } if code == "internal")
        );
    }

    #[test]
    fn codes_of_this_side_stand_in_the_header() {
        let header = include_str!("../../cpp/shim_error.h");
        assert!(header.contains(&format!("CANCELLED = \"{}\"", code::CANCELLED)));
        assert!(header.contains("INTERNAL = \"internal\""));
        assert!(
            !header.contains(&format!("\"{}\"", code::PARSE)),
            "the shim reports parser errors as faults, not under this code"
        );
    }
}
