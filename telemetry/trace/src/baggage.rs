use thiserror::Error;

/// Limits of the W3C Baggage specification.
const MAX_LEN: usize = 8192;
const MAX_MEMBERS: usize = 180;
const MAX_MEMBER_LEN: usize = 4096;

/// Why a `baggage` header is invalid. The texts hold no value: baggage may be
/// private, and errors are logged.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BaggageError {
    /// The whole header.
    #[error("baggage too large: {0} bytes, the limit is 8192")]
    TooLarge(usize),
    /// Number of members.
    #[error("too many list-members in baggage-string: the limit is 180")]
    TooMany,
    /// One member.
    #[error("list-member {0} too large: the limit is 4096 bytes")]
    MemberTooLarge(usize),
    /// No `key=value`.
    #[error("invalid baggage list-member {0}: expected key=value")]
    Member(usize),
    /// The key is no HTTP token.
    #[error("invalid key in baggage list-member {0}")]
    Key(usize),
    /// The value has characters that must be percent-encoded, or a broken escape.
    #[error("invalid value in baggage list-member {0}")]
    Value(usize),
    /// A property after `;`.
    #[error("invalid property in baggage list-member {0}")]
    Property(usize),
}

/// Checks a `baggage` header. Members are counted from 1 in errors. The header
/// is passed on as it came, so nothing is decoded or kept.
pub fn validate_baggage(text: &str) -> Result<(), BaggageError> {
    if text.len() > MAX_LEN {
        return Err(BaggageError::TooLarge(text.len()));
    }
    if text.is_empty() {
        return Ok(());
    }
    for (at, member) in text.split(',').enumerate() {
        let at = at + 1;
        if at > MAX_MEMBERS {
            return Err(BaggageError::TooMany);
        }
        if member.len() > MAX_MEMBER_LEN {
            return Err(BaggageError::MemberTooLarge(at));
        }
        let mut parts = member.split(';');
        let (key, value) = parts.next().and_then(|pair| pair.split_once('=')).ok_or(BaggageError::Member(at))?;
        if !is_token(trim(key)) {
            return Err(BaggageError::Key(at));
        }
        if !is_value(trim(value)) {
            return Err(BaggageError::Value(at));
        }
        for property in parts {
            let valid = match property.split_once('=') {
                Some((key, value)) => is_token(trim(key)) && is_value(trim(value)),
                None => is_token(trim(property)),
            };
            if !valid {
                return Err(BaggageError::Property(at));
            }
        }
    }
    Ok(())
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c))
}

/// `baggage-octet`s whose escapes are whole and, decoded, UTF-8.
fn is_value(text: &str) -> bool {
    let octet = |c: u8| matches!(c, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e);
    let bytes = text.as_bytes();
    if !bytes.iter().all(|c| octet(*c)) {
        return false;
    }
    if !bytes.contains(&b'%') {
        return true;
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let Some((pair, after)) = rest.split_first_chunk::<2>() else { return false };
        let digit = |c: u8| char::from(c).to_digit(16);
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return false };
        decoded.push((high << 4 | low) as u8);
        rest = after;
    }
    std::str::from_utf8(&decoded).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_baggage_passes() {
        for good in [
            "",
            "a=1",
            "key1=value1,key2=value2",
            "key1=value1;prop1;prop2=v, key2 = value2 ; prop",
            "key=val%20ue",
            "key=%C3%A9",
            "key=",
            "user=a=b",
        ] {
            assert_eq!(validate_baggage(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn invalid_baggage_says_what_and_where() {
        for (bad, error) in [
            ("invalid", BaggageError::Member(1)),
            ("a=1,", BaggageError::Member(2)),
            ("a=1,,b=2", BaggageError::Member(2)),
            ("=1", BaggageError::Key(1)),
            ("a b=1", BaggageError::Key(1)),
            ("a=1,k\u{e9}=2", BaggageError::Key(2)),
            ("a=b c", BaggageError::Value(1)),
            ("a=\"b\"", BaggageError::Value(1)),
            ("a=%zz", BaggageError::Value(1)),
            ("a=%2", BaggageError::Value(1)),
            ("a=%ff", BaggageError::Value(1)),
            ("a=1;", BaggageError::Property(1)),
            ("a=1;p=\\", BaggageError::Property(1)),
        ] {
            assert_eq!(validate_baggage(bad), Err(error), "{bad}");
        }
        assert_eq!(validate_baggage(&"a".repeat(8193)), Err(BaggageError::TooLarge(8193)));
        assert_eq!(validate_baggage(&format!("a={}", "b".repeat(4096))), Err(BaggageError::MemberTooLarge(1)));
        let many = vec!["a=1"; 181].join(",");
        assert_eq!(validate_baggage(&many), Err(BaggageError::TooMany));
    }

    proptest::proptest! {
        #[test]
        fn checking_never_panics_and_never_quotes(text in "\\PC{0,60}") {
            if let Err(error) = validate_baggage(&text) {
                let _ = error.to_string();
            }
        }
    }
}
