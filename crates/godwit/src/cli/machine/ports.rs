//! The public ports of a Machine in its configuration: added and taken away one by one, with all that a service holds
//! besides left as it is.

use serde_json::{Value, json};

use super::parse::PortSpec;
use super::spec::no;
#[cfg(test)]
use crate::error::CliError;
use crate::error::Result;

/// Adds a public port. It goes to the service of its port inside; one that led elsewhere before leads here now.
pub fn add(services: &mut Vec<Value>, spec: &PortSpec) -> Result<()> {
    let port = if spec.handlers.is_empty() {
        json!({ "port": spec.public })
    } else {
        json!({ "port": spec.public, "handlers": spec.handlers })
    };
    let moved = take(services, spec.public)?;
    let inside = |service: &Value| service.get("internal_port") == Some(&json!(spec.internal));
    let at = match services.iter().position(inside) {
        Some(at) => at,
        // It was all that its service had: the rest of that service stays.
        None if let Some(mut service) = moved => {
            service["internal_port"] = json!(spec.internal);
            services.push(service);
            services.len() - 1
        }
        None => {
            services.push(json!({ "protocol": spec.protocol, "internal_port": spec.internal }));
            services.len() - 1
        }
    };
    let service = services[at].as_object_mut().ok_or_else(|| no("services", "a list of objects"))?;
    super::spec::array(service, "ports")?.push(port);
    Ok(())
}

/// Takes a public port away, and its service if it has no other; that service is answered.
pub fn take(services: &mut Vec<Value>, public: u16) -> Result<Option<Value>> {
    let mut emptied = None;
    for (number, service) in services.iter_mut().enumerate() {
        let Some(ports) = service.get_mut("ports").and_then(Value::as_array_mut) else { continue };
        let before = ports.len();
        ports.retain(|port| port.get("port") != Some(&json!(public)));
        if ports.len() < before && ports.is_empty() {
            emptied = Some(number);
        }
    }
    Ok(emptied.map(|number| services.remove(number)))
}

/// The public ports that stand alone, for messages.
pub fn public(services: &[Value]) -> Vec<u64> {
    let ports = services.iter().filter_map(|service| service.get("ports")?.as_array()).flatten();
    ports.filter_map(|port| port.get("port")?.as_u64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(services: Value, specs: &[&str]) -> std::result::Result<Value, CliError> {
        let mut services = services.as_array().cloned().expect("a list");
        for spec in specs {
            add(&mut services, &spec.parse().expect("a port"))?;
        }
        Ok(Value::Array(services))
    }

    #[test]
    fn ports_that_lead_to_one_place_inside_are_one_service() {
        let services = added(json!([]), &["80:8080/tcp:http", "443:8080/tcp:tls:http", "5432"]).unwrap();
        let wanted = json!([
            { "protocol": "tcp", "internal_port": 8080,
              "ports": [{ "port": 80, "handlers": ["http"] }, { "port": 443, "handlers": ["tls", "http"] }] },
            { "protocol": "tcp", "internal_port": 5432, "ports": [{ "port": 5432 }] },
        ]);
        assert_eq!(services, wanted);
    }

    #[test]
    fn a_port_that_leads_elsewhere_now_keeps_the_rest_of_its_service() {
        let before =
            json!([{ "internal_port": 8080, "autostop": true, "ports": [{ "port": 80, "handlers": ["http"] }] }]);
        let after = added(before, &["80:9090/tcp:http"]).unwrap();
        let wanted =
            json!([{ "internal_port": 9090, "autostop": true, "ports": [{ "port": 80, "handlers": ["http"] }] }]);
        assert_eq!(after, wanted);
        assert_eq!(public(after.as_array().expect("a list")), [80]);
    }
}
