//! Which public ports apps may ask to be opened for raw TCP: every edge opens them on its own machine, beside all else that
//! listens there. Pure.

use godwit_api::ApiError;

/// Without rights of root's nobody opens a port below it; what listens there is the system's.
pub const DEFAULT: &str = "1024-65535";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPorts {
    /// First and last of each range.
    allowed: Vec<(u16, u16)>,
    /// Control's own.
    held: Vec<u16>,
}

impl RawPorts {
    /// `ranges`: each `FIRST-LAST` or one port. `None`: one of them is neither.
    pub fn new(ranges: &[String], held: Vec<u16>) -> Option<Self> {
        let range = |text: &String| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (0 < first && first <= last).then_some((first, last))
        };
        Some(Self { allowed: ranges.iter().map(range).collect::<Option<_>>()?, held })
    }

    /// 422 for the first port that apps may not have.
    pub fn judge(&self, ports: &[u16]) -> Result<(), ApiError> {
        for port in ports {
            if self.held.contains(port) {
                return Err(ApiError::unprocessable(format!(
                    "config.services: port {port} cannot be opened for raw TCP: control itself listens on it; choose another"
                )));
            }
            if !self.allowed.iter().any(|(first, last)| (first..=last).contains(&port)) {
                let ranges: Vec<String> = self.allowed.iter().map(range).collect();
                return Err(ApiError::unprocessable(format!(
                    "config.services: port {port} may not be opened for raw TCP; this fleet allows {}. Choose another port, \
                     give this one the handler \"http\", or ask the operator to allow it by raw_ports in control's \
                     configuration",
                    if ranges.is_empty() { "none".to_owned() } else { ranges.join(", ") }
                )));
            }
        }
        Ok(())
    }
}

fn range((first, last): &(u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_system_and_of_control_are_refused_unless_they_are_allowed() {
        let ports = |ranges: &[&str]| {
            let ranges: Vec<String> = ranges.iter().map(|text| (*text).to_owned()).collect();
            RawPorts::new(&ranges, vec![4280])
        };
        let usual = ports(&[DEFAULT]).unwrap();
        assert!(usual.judge(&[1024, 5432, 65_535]).is_ok() && usual.judge(&[]).is_ok());
        let refused = usual.judge(&[5432, 22]).unwrap_err();
        assert!(refused.code == 422 && refused.error.contains("port 22") && refused.error.contains("1024-65535"));
        assert!(usual.judge(&[4280]).unwrap_err().error.contains("control itself"));
        let mail = ports(&["25", "5000 - 5999"]).unwrap();
        assert!(mail.judge(&[25, 5000]).is_ok());
        assert!(mail.judge(&[26]).unwrap_err().error.contains("allows 25, 5000-5999"));
        assert!(ports(&[]).unwrap().judge(&[5000]).unwrap_err().error.contains("allows none"));
        for wrong in ["0-5", "6-5", "x", "", "1-70000"] {
            assert_eq!(ports(&[wrong]), None, "{wrong:?}");
        }
    }
}
