//! "Did you mean": the nearest of the names that exist.

/// The known name nearest to `given`, if it is near enough that a slip of the fingers explains the difference.
pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = given.to_lowercase();
    let limit = (given.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["appPort", "appProtocol", "command"];

    #[test]
    fn a_slip_finds_the_name() {
        assert_eq!(nearest("appPrt", KNOWN), Some("appPort"));
        assert_eq!(nearest("APPPORT", KNOWN), Some("appPort"));
        assert_eq!(nearest("comand", KNOWN), Some("command"));
    }

    #[test]
    fn another_word_finds_nothing() {
        assert_eq!(nearest("containerImage", KNOWN), None);
        assert_eq!(nearest("x", KNOWN), None);
    }
}
