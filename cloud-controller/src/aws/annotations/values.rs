//! How AWS Load Balancer Controller writes values: lists, maps, booleans, numbers.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Split at commas, trimmed, without empty items.
pub(super) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// `key=value,key=value`; a backslash takes the next character as it is. `None` if a part has no
/// `=` or no key.
pub(super) fn map(text: &str) -> Option<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for part in split_escaped(text) {
        let (key, value) = part?;
        map.insert(key, value);
    }
    Some(map)
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

pub(super) fn number(text: &str, range: &RangeInclusive<u16>) -> Option<u16> {
    text.parse().ok().filter(|n| range.contains(n))
}

/// Each part as key and value, or `None` where it is malformed.
fn split_escaped(text: &str) -> impl Iterator<Item = Option<(String, String)>> {
    let mut parts = Vec::new();
    let (mut key, mut current, mut escaped) = (None::<String>, String::new(), false);
    for c in text.chars() {
        match c {
            _ if escaped => {
                current.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '=' if key.is_none() => key = Some(std::mem::take(&mut current)),
            ',' => parts.push((key.take(), std::mem::take(&mut current))),
            _ => current.push(c),
        }
    }
    parts.push((key, current));
    let blank = |part: &(Option<String>, String)| part.0.is_none() && part.1.trim().is_empty();
    parts.into_iter().filter(move |part| !blank(part)).map(|(key, value)| {
        let key = key?.trim().to_owned();
        (!key.is_empty()).then(|| (key, value.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_split_at_unescaped_commas_and_equal_signs() {
        let map_of = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        for (text, expected) in [
            ("", map_of(&[])),
            ("a=1", map_of(&[("a", "1")])),
            (" a = 1 , b=2,", map_of(&[("a", "1"), ("b", "2")])),
            ("a=1=2", map_of(&[("a", "1=2")])),
            (r"a=x\,y,b=\=", map_of(&[("a", "x,y"), ("b", "=")])),
            ("a=", map_of(&[("a", "")])),
            ("a=1,b", None),
            ("=1", None),
        ] {
            assert_eq!(map(text), expected, "{text:?}");
        }
    }

    #[test]
    fn lists_drop_what_is_empty() {
        assert_eq!(list(" a, ,b,"), ["a", "b"]);
    }
}
