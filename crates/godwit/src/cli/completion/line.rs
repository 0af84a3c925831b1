//! What a shell hands over to be completed, and how it wants the answers. Pure.

/// The words of a command line, with the one that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub words: Vec<String>,
    /// Which of them is being written.
    pub at: usize,
    /// What the shell keeps of the current word by itself: bash replaces only what follows the last of its breaks.
    kept: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The answer that asks the shell for its own file names.
pub const FILES: &str = ":files";

impl Line {
    /// As bash tells it: the place of the cursor, the line, and what breaks words besides blanks.
    pub fn of_bash(arguments: &[String]) -> Option<Self> {
        let [point, line, breaks] = arguments else { return None };
        let point = point.parse::<usize>().ok()?.min(line.len());
        let (before, after) = (line.get(..point)?, line.get(point..)?);
        let mut words = split(before);
        let at = words.len().checked_sub(1)?;
        let kept = words[at].rfind([':', '=']).filter(|end| breaks.contains(&words[at][*end..=*end]));
        let kept = kept.map_or_else(String::new, |end| words[at][..=end].to_owned());
        // What is left of the current word does not count, and the words after it do.
        let rest = after.find(char::is_whitespace).map_or("", |blank| after[blank..].trim());
        words.extend(split(rest).into_iter().filter(|word| !word.is_empty()));
        Some(Self { words, at, kept })
    }

    /// As zsh and fish tell it: the number of the current word, then all words.
    pub fn of_words(arguments: &[String]) -> Option<Self> {
        let (at, words) = arguments.split_first()?;
        let (at, mut words) = (at.parse::<usize>().ok()?, words.to_vec());
        if at == words.len() {
            words.push(String::new());
        }
        (at < words.len()).then_some(Self { words, at, kept: String::new() })
    }

    pub fn current(&self) -> &str {
        &self.words[self.at]
    }

    /// The words without the current one.
    pub fn others(&self) -> Vec<&str> {
        let others = self.words.iter().enumerate().filter(|(at, _)| *at != self.at);
        others.map(|(_, word)| word.as_str()).collect()
    }

    /// One answer as the shell wants it.
    pub fn answer(&self, shell: Shell, value: &str, about: &str) -> String {
        match shell {
            Shell::Bash => value.strip_prefix(&self.kept).unwrap_or(value).to_owned(),
            Shell::Fish if about.is_empty() => value.to_owned(),
            Shell::Fish => format!("{value}\t{about}"),
            Shell::Zsh => {
                let value = value.replace('\\', "\\\\").replace(':', "\\:");
                if about.is_empty() || value.ends_with([':', '=']) { value } else { format!("{value}:{about}") }
            }
        }
    }
}

/// Words as a shell splits them; the last is the one being written, and empty behind a blank. A quote may stay open.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let word = words.last_mut().expect("there is always one");
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None | Some('"'), '\\') => word.extend(characters.next()),
            (None, _) if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(String::new());
                }
            }
            _ => word.push(character),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bash(line: &str) -> Line {
        let (before, after) = line.split_once('|').expect("the cursor is marked");
        let arguments = [before.len().to_string(), format!("{before}{after}"), " \t\n\"'><=;|&(:".to_owned()];
        Line::of_bash(&arguments).expect("a line")
    }

    #[test]
    fn a_line_of_bash_is_split_at_the_cursor() {
        let line = bash("godwit machine stop we| -a shop");
        assert_eq!((line.current(), line.others()), ("we", vec!["godwit", "machine", "stop", "-a", "shop"]));
        assert_eq!(bash("godwit  apps show |").words, ["godwit", "apps", "show", ""]);
        assert_eq!(bash("godwit apps show 'sh|").current(), "sh");
        assert_eq!(bash(r"godwit cp a\ b| c").others(), ["godwit", "cp", "c"]);
        assert_eq!(bash("godwit apps show sh|op").words, ["godwit", "apps", "show", "sh"]);
    }

    #[test]
    fn bash_gets_what_follows_its_own_breaks_and_the_others_get_all() {
        let line = bash("godwit machine run shop:v|");
        assert_eq!(line.answer(Shell::Bash, "shop:v1", "about"), "v1");
        assert_eq!(bash("godwit status --app=s|").answer(Shell::Bash, "--app=shop", ""), "shop");
        assert_eq!(bash("godwit machine run sh|").answer(Shell::Bash, "shop:v1", ""), "shop:v1");
        let words = ["3", "godwit", "machine", "run"].map(str::to_owned);
        let line = Line::of_words(&words).unwrap();
        assert_eq!(line.current(), "");
        assert_eq!(line.answer(Shell::Zsh, "shop:v1", "60 MB"), "shop\\:v1:60 MB");
        assert_eq!(line.answer(Shell::Zsh, "data:", "10 GB"), "data\\:");
        assert_eq!(line.answer(Shell::Fish, "shop:v1", "60 MB"), "shop:v1\t60 MB");
        assert_eq!(Line::of_words(&["9".to_owned(), "godwit".to_owned()]), None);
    }
}
