//! Which app a host name means. Pure.

use std::collections::BTreeMap;

use godwit_api::ids::AppName;

#[derive(Debug, Clone)]
pub struct Names {
    /// Each with its leading dot.
    suffixes: Vec<String>,
    exact: BTreeMap<String, AppName>,
}

impl Names {
    pub fn new(suffixes: &[String], exact: BTreeMap<String, AppName>) -> Self {
        Self { suffixes: suffixes.iter().map(|suffix| format!(".{suffix}")).collect(), exact }
    }

    /// `host` without its port, in any case.
    pub fn app(&self, host: &str) -> Option<AppName> {
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.app_lower(&host.to_ascii_lowercase());
        }
        self.app_lower(host)
    }

    fn app_lower(&self, host: &str) -> Option<AppName> {
        if let Some(app) = self.exact.get(host) {
            return Some(app.clone());
        }
        let label = self.suffixes.iter().find_map(|suffix| host.strip_suffix(suffix.as_str()))?;
        // A label has no dots, so deeper names are nobody's.
        AppName::parse(label).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_exact_or_one_label_under_a_suffix() {
        let exact = BTreeMap::from([("www.example.com".to_owned(), AppName::parse("shop").unwrap())]);
        let names = Names::new(&["localhost".into(), "apps.example.com".into()], exact);
        let app = |host: &str| names.app(host).map(|app| app.to_string());
        assert_eq!(app("web.localhost").as_deref(), Some("web"));
        assert_eq!(app("WEB.LocalHost.").as_deref(), Some("web"));
        assert_eq!(app("web.apps.example.com").as_deref(), Some("web"));
        assert_eq!(app("www.example.com").as_deref(), Some("shop"));
        for nobody in ["localhost", ".localhost", "a.web.localhost", "weblocalhost", "example.com", "", "[::1]"] {
            assert_eq!(app(nobody), None, "{nobody:?}");
        }
    }
}
