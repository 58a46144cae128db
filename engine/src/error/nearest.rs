//! Finds the name that somebody probably meant.

/// The name of `names` that is most similar to `wanted`, if any is similar enough: at most a third of
/// its characters differ, and case does not count. Of equally similar names the first one.
#[must_use]
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let changes_max = wanted.chars().count().div_ceil(3);
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wanted, &name.to_lowercase()), name))
        .filter(|(changes, _)| *changes <= changes_max)
        .min_by_key(|(changes, _)| *changes)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_typing_error_finds_its_name_and_a_stranger_finds_none() {
        let names = ["trades", "quotes", "system.nodes"];
        assert_eq!(nearest("tardes", names), Some("trades"));
        assert_eq!(nearest("QUOTE", names), Some("quotes"));
        assert_eq!(nearest("customers", names), None);
    }
}
