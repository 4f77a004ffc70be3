//! "did you mean": the nearest known name.

/// The candidate nearest to `name`, if it is near enough to be a slip of the pen: about one slip
/// for every three characters, a swap of neighbours counting as one.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long garbage is nobody's misspelling, and the distance costs its square.
    if name.len() > 64 {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let limit = name.chars().count().div_ceil(3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| *candidate != name)
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "x"?` for the nearest candidate, or nothing.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates)
        .map(|found| format!("; did you mean \"{found}\"?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_other_names_are_not() {
        let fields = ["weight", "host", "port", "priority"];
        assert_eq!(nearest("wieght", fields), Some("weight"));
        assert_eq!(nearest("Weight", fields), Some("weight"));
        assert_eq!(nearest("prot", fields), Some("port"));
        assert_eq!(nearest("colour", fields), None);
        assert_eq!(nearest("", fields), None);
        assert_eq!(nearest(&"w".repeat(100_000), fields), None);
        assert_eq!(did_you_mean("hots", fields), "; did you mean \"host\"?");
        assert_eq!(did_you_mean("colour", fields), "");
    }
}
