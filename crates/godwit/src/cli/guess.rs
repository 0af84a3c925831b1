//! "Did you mean": the nearest of the names that there are. Pure.

/// Below this two names are not alike.
const ALIKE: f64 = 0.75;
/// Who knows the beginning of an id or a name means it; who wrote more than there is may mean it.
const BEGINS: f64 = 1.2;
const GOES_ON: f64 = 1.1;
/// So many are named at most.
const GUESSES: usize = 3;

/// The sentence, if any name is near.
pub fn did_you_mean<S: AsRef<str>>(wrong: &str, names: &[S]) -> Option<String> {
    let near = nearest(wrong, names);
    (!near.is_empty()).then(|| format!("did you mean {}?", near.join(" or ")))
}

/// Names that are like a wrong one, the nearest first.
pub fn nearest<'a, S: AsRef<str>>(wrong: &str, names: &'a [S]) -> Vec<&'a str> {
    let wrong = wrong.to_lowercase();
    let mut rated: Vec<(f64, &str)> = names
        .iter()
        .map(|name| {
            let name = name.as_ref();
            let lower = name.to_lowercase();
            let rated = if wrong.len() >= 2 && lower.starts_with(&wrong) {
                BEGINS
            } else if lower.len() >= 3 && wrong.starts_with(&lower) {
                GOES_ON
            } else {
                alike(&wrong, &lower)
            };
            (rated, name)
        })
        .filter(|(alike, _)| *alike >= ALIKE)
        .collect();
    rated.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    rated.dedup_by_key(|(_, name)| *name);
    rated.into_iter().take(GUESSES).map(|(_, name)| name).collect()
}

/// Long names by what they share, short ones also by the letters that were swapped, missed or doubled.
fn alike(wrong: &str, name: &str) -> f64 {
    let slips = strsim::osa_distance(wrong, name);
    let allowed = if wrong.chars().count() <= 4 { 1 } else { 2 };
    let near = slips <= allowed && slips < wrong.chars().count();
    strsim::jaro_winkler(wrong, name).max(if near { 0.9 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_near_are_guessed_and_others_are_not() {
        let names = ["shop", "shop-staging", "billing", "hello"];
        assert_eq!(did_you_mean("shpo", &names).as_deref(), Some("did you mean shop?"));
        assert_eq!(nearest("helo", &names), ["hello"]);
        assert_eq!(nearest("shop-s", &names), ["shop-staging", "shop"][..].to_vec());
        assert_eq!(nearest("wbe", &["web", "worker"]), ["web"]);
        assert_eq!(did_you_mean("xyz", &names), None);
        assert_eq!(did_you_mean("x", &[] as &[&str]), None);
    }
}
