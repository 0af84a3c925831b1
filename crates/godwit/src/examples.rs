//! An example for every command, and the definition of the command line with them: what is parsed, and what help prints.
//! They stand in one place so that one app, `shop`, runs through all of them. A test parses each.

use clap::{Command, CommandFactory, FromArgMatches};

use crate::args::Arguments;

/// By the words of a command. A group shows the first of its commands.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("apps create", &["godwit apps create shop"]),
    ("apps list", &["godwit apps list"]),
    ("apps show", &["godwit apps show shop"]),
    ("apps destroy", &["godwit apps destroy shop --with-volumes"]),
    (
        "machine run",
        &[
            "godwit machine run shop:v1 -a shop -p 80:8080/tcp:http -e LOG=debug",
            "godwit machine run postgres:17 -a shop --volume data:/var/lib/postgresql/data -- postgres -c shared_buffers=1GB",
        ],
    ),
    ("machine create", &["godwit machine create shop:v1 -a shop --name web2"]),
    ("machine clone", &["godwit machine clone web1 -a shop --region ams --name web2"]),
    ("machine list", &["godwit machine list -a shop"]),
    ("machine status", &["godwit machine status web1 -a shop --config"]),
    ("machine start", &["godwit machine start web1 web2 -a shop"]),
    ("machine stop", &["godwit machine stop web1 -a shop --timeout 30s"]),
    ("machine restart", &["godwit machine restart web1 -a shop"]),
    ("machine kill", &["godwit machine kill web1 -a shop --signal SIGHUP"]),
    ("machine update", &["godwit machine update web1 -a shop --image shop:v2 --vm-memory 512mb"]),
    ("machine migrate", &["godwit machine migrate web1 -a shop --to w2 --precopy"]),
    ("machine destroy", &["godwit machine destroy web1 -a shop --force"]),
    (
        "machine exec",
        &[
            "godwit machine exec db1 -a shop -- pg_dump -U postgres shop > shop.sql",
            "godwit machine exec db1 -a shop -it -- psql -U postgres",
        ],
    ),
    ("machine shell", &["godwit machine shell web1 -a shop"]),
    (
        "machine cp",
        &[
            "godwit machine cp ./site/. web1:/usr/share/nginx/html -a shop",
            "godwit machine cp db1:/data - -a shop | gzip > data.tar.gz",
        ],
    ),
    ("machine top", &["godwit machine top web1 -a shop --sort cpu"]),
    ("machine wait", &["godwit machine wait web1 -a shop --state stopped --wait-timeout 1m"]),
    ("machine cordon", &["godwit machine cordon web1 -a shop"]),
    ("machine uncordon", &["godwit machine uncordon web1 -a shop"]),
    ("machine lease show", &["godwit machine lease show web1 -a shop"]),
    ("machine lease create", &["godwit machine lease create web1 -a shop --ttl 5m --description deploy"]),
    ("machine lease release", &["godwit machine lease release web1 -a shop --lease-nonce NONCE"]),
    ("scale count", &["godwit scale count 3 -a shop --region fra"]),
    ("scale show", &["godwit scale show -a shop"]),
    ("volumes create", &["godwit volumes create data -a shop --size 10GiB"]),
    ("volumes list", &["godwit volumes list -a shop"]),
    ("volumes show", &["godwit volumes show data -a shop"]),
    ("volumes delete", &["godwit volumes delete data -a shop"]),
    ("volumes migrate", &["godwit volumes migrate data -a shop --to w2"]),
    ("migration list", &["godwit migration list -a shop --all"]),
    ("migration show", &["godwit migration show mig_0000000000002a"]),
    ("migration watch", &["godwit migration watch mig_0000000000002a"]),
    ("migration cancel", &["godwit migration cancel mig_0000000000002a"]),
    (
        "certs add",
        &[
            "godwit certs add www.example.com -a shop",
            "godwit certs add '*.example.com' -a shop --fullchain chain.pem --private-key key.pem",
        ],
    ),
    ("certs list", &["godwit certs list -a shop"]),
    ("certs show", &["godwit certs show www.example.com -a shop"]),
    ("certs check", &["godwit certs check www.example.com -a shop"]),
    ("certs remove", &["godwit certs remove www.example.com -a shop"]),
    ("image load", &["godwit image load shop.tar --name shop:v1", "docker save shop:v1 | godwit image load -"]),
    ("image list", &["godwit image list"]),
    ("image remove", &["godwit image remove shop:v1"]),
    ("host list", &["godwit host list"]),
    ("host show", &["godwit host show w1"]),
    ("host cordon", &["godwit host cordon w1"]),
    ("host uncordon", &["godwit host uncordon w1"]),
    ("host strays list", &["godwit host strays list w1"]),
    ("host strays adopt", &["godwit host strays adopt w1 ID --app shop"]),
    ("host strays end", &["godwit host strays end w1 ID"]),
    (
        "ips private",
        &[
            "godwit ips private cache -a shop",
            "REDIS_URL=\"redis://[$(godwit ips private cache -a shop --quiet)]:6379/0\"",
        ],
    ),
    ("status", &["godwit status -a shop"]),
    ("logs", &["godwit logs -a shop --follow"]),
    ("proxy", &["godwit proxy 5433:5432 db1 -a shop"]),
    ("config show", &["godwit config show --context prod"]),
    ("config set", &["godwit config set app shop"]),
    ("config unset", &["godwit config unset app"]),
    ("config add", &["godwit config add prod --api-url https://control.example.com:4280 --ca-file fleet.pem"]),
    ("config use", &["godwit config use prod"]),
    ("config list", &["godwit config list"]),
    ("config remove", &["godwit config remove prod"]),
    ("config use-dev", &["godwit config use-dev /var/tmp/godwit"]),
    ("config path", &["godwit config path"]),
    ("completions", &["godwit completions bash > /etc/bash_completion.d/godwit"]),
    ("run control", &["godwit run control --config /etc/godwit/control.toml"]),
    ("run agent", &["godwit run agent --config /etc/godwit/agent.toml --check"]),
    ("run door", &["godwit run door --config /etc/godwit/door.toml"]),
    ("run edge", &["godwit run edge --config /etc/godwit/edge.toml --take-over"]),
    ("dev", &["sudo godwit dev --data /var/tmp/godwit", "godwit dev --data /var/tmp/godwit --hosts 2 --region fra"]),
    ("help", &["godwit help machine run", "godwit help exit-codes"]),
];

/// Of the whole command line.
const FIRST_STEPS: &str = "Example:\n  godwit image load shop.tar --name shop:v1\n  godwit apps create shop\n  \
    godwit machine run shop:v1 -a shop -p 80:8080/tcp:http\n\nExit codes: `godwit help exit-codes`.";

/// As `Parser::try_parse`, with the examples.
pub fn parse() -> Result<Arguments, clap::Error> {
    let mut definition = definition();
    let matches = definition.try_get_matches_from_mut(std::env::args_os())?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut definition))
}

pub fn definition() -> Command {
    Arguments::command().after_help(FIRST_STEPS).mut_subcommands(|command| with_example(command, ""))
}

fn with_example(command: Command, group: &str) -> Command {
    let path = format!("{group}{}", command.get_name());
    let below = format!("{path} ");
    let lines = match EXAMPLES.iter().find(|(of, _)| *of == path) {
        Some((_, lines)) => *lines,
        None => match EXAMPLES.iter().find(|(of, _)| of.starts_with(&below)) {
            Some((_, lines)) => &lines[..1],
            None => return command,
        },
    };
    let command = command.after_help(format!("Example:\n  {}", lines.join("\n  ")));
    command.mut_subcommands(|inner| with_example(inner, &below))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    /// Help texts of all that can be seen, by their words; whether it is a leaf.
    fn walk(command: &Command, path: &str, found: &mut Vec<(String, String, bool)>) {
        let mut seen = command.get_subcommands().filter(|inner| !inner.is_hide_set()).peekable();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.push((path.trim().to_owned(), help, seen.peek().is_none()));
        seen.for_each(|inner| walk(inner, &format!("{path} {}", inner.get_name()), found));
    }

    /// The part of a line of shell that is one command of ours.
    fn ours(line: &str) -> Option<Vec<String>> {
        let start = line.find("godwit ").filter(|_| !line.contains("$("))?;
        let rest = line[start..].split(['>', '<', '|']).next().unwrap_or_default();
        shlex::split(rest)
    }

    #[test]
    fn every_command_has_an_example_that_parses_as_this_command() {
        let mut found = Vec::new();
        walk(&definition(), "", &mut found);
        assert!(found.len() > 80, "{} commands were walked", found.len());
        let mut wrong = Vec::new();
        for (path, help, is_leaf) in &found {
            if !help.contains("Example:\n  ") {
                wrong.push(format!("`{path}` has no example"));
            }
            for line in help.lines().filter(|line| line.starts_with("  ")) {
                let Some(mut words) = ours(line) else { continue };
                if *is_leaf && !words[1..].join(" ").starts_with(path) {
                    wrong.push(format!("`{path}` shows another command: {line}"));
                }
                if let Err(error) = Arguments::try_parse_from(&words) {
                    wrong.push(format!("{line}: {error}"));
                }
                words.push("--no-such-flag".to_owned());
                let passes_on = words.iter().any(|word| word == "--");
                if !passes_on && Arguments::try_parse_from(&words).is_ok() {
                    wrong.push(format!("{line}: takes anything, so that it parses proves nothing"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let known: BTreeSet<&str> = found.iter().map(|(path, ..)| path.as_str()).collect();
        let stale: Vec<&str> = EXAMPLES.iter().map(|(path, _)| *path).filter(|path| !known.contains(path)).collect();
        assert!(stale.is_empty(), "examples of commands that are not there: {stale:?}");
    }
}
