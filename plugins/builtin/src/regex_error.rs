//! What is wrong with a regular expression, in one line.

use portcullis_plugin::BuildError;

/// A syntax error is told over several lines, the expression drawn with a mark below; only the last one says
/// what is wrong, and the others would be lost in the excerpt of the configuration.
pub(crate) fn not_a_regex(at: &str, error: &regex::Error) -> BuildError {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    BuildError::at(at, format!("not a regular expression: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_one_line_without_the_expression() {
        let error = |expression: &str| {
            let error = regex::RegexBuilder::new(expression).size_limit(1 << 20).build().unwrap_err();
            not_a_regex("patterns[0]", &error).message
        };
        assert_eq!(error("(a"), "not a regular expression: unclosed group");
        assert_eq!(error("(?x)\n(a"), "not a regular expression: unclosed group");
        let large = error("(a{1000}){1000}");
        assert!(large.contains("size limit") && !large.contains('\n'), "{large}");
    }
}
