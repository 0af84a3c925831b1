//! What a loaded image is called. Pure.

use std::ffi::OsStr;
use std::str::FromStr;

use crate::error::Error;
use crate::name::{DEFAULT_TAG, Reference, is_name, is_tag};

/// What the caller and the file say about the name.
pub(super) struct Naming {
    given: Option<Reference>,
    /// From the name of the file or folder.
    file: Option<String>,
}

impl Naming {
    pub(super) fn new(given: Option<&str>, file: Option<&OsStr>) -> Result<Self, Error> {
        Ok(Self { given: given.map(Reference::from_str).transpose()?, file: file.and_then(name_of_file) })
    }

    /// Names and tags of one image. `own` are those that the source gives it (references,
    /// or just tags); `among` is how many images the source holds.
    pub(super) fn names(&self, what: &str, own: &[String], among: usize) -> Result<Vec<(String, String)>, Error> {
        if let Some(given) = &self.given {
            return match (&given.tag, among) {
                (Some(tag), 1) => Ok(vec![(given.name.clone(), tag.clone())]),
                (None, 1) => Ok(vec![(given.name.clone(), DEFAULT_TAG.to_owned())]),
                (Some(_), _) => Err(Error::NotAnImage {
                    what: format!("{what} with a tag given"),
                    reason: format!("it holds {among} images, which keep their own tags: give a name without a tag"),
                }),
                (None, _) => own_tags(own, what).map(|tags| tags.map(|tag| (given.name.clone(), tag)).collect()),
            };
        }
        let mut names = Vec::new();
        for text in own {
            // An image layout's `ref.name` is a tag, or a whole reference in many tools.
            let is_whole = text.contains(['/', ':']);
            match (&self.file, is_whole) {
                (_, true) => {
                    let reference = Reference::from_str(text).map_err(Error::OwnName)?;
                    let tag = reference.tag_or_default().to_owned();
                    names.push((reference.name, tag));
                }
                (Some(file), false) if is_tag(text) => names.push((file.clone(), text.clone())),
                _ => {}
            }
        }
        if let (true, Some(file), 1) = (names.is_empty(), &self.file, among) {
            names.push((file.clone(), DEFAULT_TAG.to_owned()));
        }
        if names.is_empty() { Err(Error::NoName) } else { Ok(names) }
    }
}

fn own_tags<'a>(own: &'a [String], what: &str) -> Result<impl Iterator<Item = String> + use<'a>, Error> {
    if own.is_empty() {
        return Err(Error::NotAnImage {
            what: what.to_owned(),
            reason: "it holds several images, of which one has no tag; load them one by one".into(),
        });
    }
    Ok(own.iter().map(|text| match text.rsplit_once(':') {
        Some((_, tag)) if is_tag(tag) => tag.to_owned(),
        _ if is_tag(text) => text.clone(),
        _ => DEFAULT_TAG.to_owned(),
    }))
}

/// `My App.tar.gz` becomes `my-app`.
fn name_of_file(file: &OsStr) -> Option<String> {
    let mut name = file.to_str()?.to_lowercase();
    for suffix in [".gz", ".zst", ".zstd", ".tgz", ".tar", ".oci"] {
        if let Some(stem) = name.strip_suffix(suffix) {
            name = stem.to_owned();
        }
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
    is_name(&name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: Option<&str>, file: Option<&str>, own: &[&str], among: usize, wanted: &[(&str, &str)]) {
        let naming = Naming::new(given, file.map(OsStr::new)).unwrap();
        let own: Vec<String> = own.iter().map(|s| (*s).to_owned()).collect();
        let names = naming.names("x", &own, among).unwrap();
        let names: Vec<_> = names.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        assert_eq!(names, wanted);
    }

    #[test]
    fn who_names_an_image() {
        check(Some("apps/a:v1"), Some("f.tar"), &["own:t"], 1, &[("apps/a", "v1")]);
        check(Some("apps/a"), None, &["own:t"], 1, &[("apps/a", "latest")]);
        check(Some("apps/a"), None, &["own:t", "u"], 2, &[("apps/a", "t"), ("apps/a", "u")]);
        check(None, Some("f.tar"), &["docker.io/library/nginx:1"], 1, &[("nginx", "1")]);
        check(None, Some("My App.tar.gz"), &["v3"], 1, &[("my-app", "v3")]);
        check(None, Some("oci-b"), &[], 1, &[("oci-b", "latest")]);
        check(None, None, &["a/b"], 1, &[("a/b", "latest")]);
    }

    #[test]
    fn a_name_that_cannot_be_used_says_what_to_do() {
        let naming = Naming::new(None, None).unwrap();
        let error = naming.names("x", &["Team/App:v1".into()], 1).unwrap_err();
        assert!(matches!(error, Error::OwnName(_)) && error.to_string().contains("--name NAME"), "{error}");
        check(Some("own"), None, &["Team/App:v1"], 1, &[("own", "latest")]);
        check(None, None, &["localhost:5000/team/app:v1"], 1, &[("localhost/team/app", "v1")]);
    }

    #[test]
    fn without_any_name_one_is_asked_for() {
        let naming = Naming::new(None, None).unwrap();
        assert!(matches!(naming.names("x", &[], 1), Err(Error::NoName)));
        assert!(matches!(naming.names("x", &["v1".into()], 1), Err(Error::NoName)));
        assert!(Naming::new(Some("A B"), None).is_err());
        let tagged = Naming::new(Some("a:b"), None).unwrap();
        assert!(tagged.names("x", &["v1".into()], 2).is_err());
    }
}
