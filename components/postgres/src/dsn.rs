//! Connection strings as libpq and pgx read them: `key=value` pairs or a URL.
//!
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>
//!
//! Messages name keys and positions, never values: a connection string holds a password.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// Settings by their libpq name, lower case. Lists of hosts and ports are comma separated.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads a connection string of either form.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => url(rest),
            None => pairs(text),
        }
    }

    /// The value of `key`; empty counts as absent.
    #[cfg(test)]
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Sets `key`, replacing what the connection string said.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        let key = key.to_ascii_lowercase();
        // pgx takes both spellings.
        let key = if key == "database" { "dbname".to_owned() } else { key };
        self.0.insert(key, value.to_owned());
    }

    /// Removes `key` and gives its value; empty counts as absent.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key).filter(|v| !v.is_empty())
    }

    /// What nobody took.
    pub(crate) fn rest(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// `host=localhost user='o''brien' password=a\ b`.
fn pairs(text: &str) -> Result<Settings, String> {
    let mut settings = Settings::default();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        if key.is_empty() && chars.peek().is_none() {
            return Ok(settings);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if key.is_empty() || chars.next() != Some('=') {
            return Err("the connection string is neither a URL (postgres://…) nor a list of key=value pairs".into());
        }
        if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Err("the connection string has a key that is no name".into());
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.peek() {
                None if quoted => {
                    return Err(format!("the value of '{key}' in the connection string has no end quote"));
                }
                None => break,
                Some('\'') if quoted => {
                    chars.next();
                    // libpq wants a backslash, people write two quotes.
                    if chars.next_if_eq(&'\'').is_none() {
                        break;
                    }
                    value.push('\'');
                }
                Some('\\') => {
                    chars.next();
                    value.extend(chars.next());
                }
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => {
                    value.push(*c);
                    chars.next();
                }
            }
        }
        settings.set(&key, &value);
    }
}

/// What follows the scheme: `user:password@host:port,host:port/database?key=value`.
fn url(rest: &str) -> Result<Settings, String> {
    let mut settings = Settings::default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // An unencoded @ or / in a password is a mistake that is often made: the last @ of the authority counts.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, rest),
    };
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some(user) = user {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        settings.set("user", &decode(name, "the user name")?);
        settings.set("password", &decode(password, "the password")?);
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|h| !h.is_empty()) {
        let (name, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
            Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
            None => host.rsplit_once(':').unwrap_or((host, "")),
        };
        names.push(decode(name, "a host")?);
        ports.push(port.to_owned());
    }
    if names.iter().any(|n| !n.is_empty()) {
        settings.set("host", &names.join(","));
    }
    if ports.iter().any(|p| !p.is_empty()) {
        settings
            .set("port", &ports.iter().map(|p| if p.is_empty() { "5432" } else { p }).collect::<Vec<_>>().join(","));
    }
    settings.set("dbname", &decode(database, "the database name")?);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key, "a key")?;
        if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Err("the connection string has a key that is no name".into());
        }
        let value = decode(value, "a value")?;
        settings.set(&key, &value);
    }
    Ok(settings)
}

fn decode(text: &str, what: &str) -> Result<String, String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(format!("{what} in the connection string is not valid UTF-8 after percent-decoding")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &str) -> Vec<(String, String)> {
        let settings = Settings::parse(text).unwrap();
        settings.0.into_iter().filter(|(_, v)| !v.is_empty()).collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn pairs_with_quotes_and_escapes() {
        let text = r"host=db.example  port = 6543 user='o\'brien' password='a b''c\\' Database=orders options=a\ b";
        assert_eq!(
            all(text),
            owned(&[
                ("dbname", "orders"),
                ("host", "db.example"),
                ("options", "a b"),
                ("password", r"a b'c\"),
                ("port", "6543"),
                ("user", "o'brien"),
            ])
        );
    }

    #[test]
    fn urls() {
        assert_eq!(
            all("postgresql://me:p%40ss%2Fw@h1:1,[::1]:2,h3/my%20db?sslmode=verify-full&search_path=a"),
            owned(&[
                ("dbname", "my db"),
                ("host", "h1,::1,h3"),
                ("password", "p@ss/w"),
                ("port", "1,2,5432"),
                ("search_path", "a"),
                ("sslmode", "verify-full"),
                ("user", "me"),
            ])
        );
        assert_eq!(all("postgres://%2Frun%2Fpg/x"), owned(&[("dbname", "x"), ("host", "/run/pg")]));
        assert_eq!(all("postgres://me:a@b@h/x")[2], ("password".to_owned(), "a@b".to_owned()));
        assert_eq!(all("postgres:///?host=/tmp"), owned(&[("host", "/tmp")]));
    }

    #[test]
    fn mistakes_do_not_show_the_password() {
        for text in ["secret", "password='secret", "pass word=secret", "=secret", "postgres://u:%ffsecret@h"] {
            let message = match Settings::parse(text) {
                Ok(_) => panic!("{text} was accepted"),
                Err(message) => message,
            };
            assert!(!message.contains("secret"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}|(postgres://)?[a-z%?&=:@/,'\\\\ \\[\\]0-9]{0,50}") {
            let _ = Settings::parse(&text);
        }

        #[test]
        fn a_quoted_value_comes_back(value in "\\PC{1,30}") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            let settings = Settings::parse(&format!("host=h password='{quoted}' port=1")).unwrap();
            prop_assert_eq!(settings.get("password"), Some(value.as_str()));
            prop_assert_eq!(settings.get("port"), Some("1"));
        }
    }
}
