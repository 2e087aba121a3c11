//! Words, quotes and variables of a Dockerfile's instruction.

/// What becomes of quotes and backslashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// They stay: the word is still to be expanded.
    Keep,
    /// They have done their work.
    Remove,
}

/// Splits at spaces outside quotes.
pub(super) fn words(text: &str, quotes: Quotes) -> Result<Vec<String>, &'static str> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut open: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let quoting = match open {
            Some(quote) => c == quote,
            None => matches!(c, '"' | '\''),
        };
        if open.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        if quoting {
            open = if open.is_some() { None } else { Some(c) };
        }
        let escape = c == '\\' && open != Some('\'');
        if quotes == Quotes::Keep || !(quoting || escape) {
            word.push(c);
        }
        if escape {
            word.extend(chars.next());
        }
    }
    if open.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

/// `NAME=value NAME="other value"`, or the old form `NAME the whole rest`. Quotes are still on the values.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let named = |name: &str| if name.is_empty() { Err("a name is empty") } else { Ok(unquoted(name)) };
    let first = text.find(|c: char| c.is_whitespace() || c == '=');
    match first {
        Some(at) if !text[at..].starts_with('=') => {
            let (name, value) = text.split_at(at);
            Ok(vec![(named(name)??, value.trim().to_owned())])
        }
        None => Err("a name needs a value: NAME=value"),
        _ => words(text, Quotes::Keep)?
            .into_iter()
            .map(|word| {
                let (name, value) = word.split_once('=').ok_or("a name needs a value: NAME=value")?;
                Ok((named(name)??, value.to_owned()))
            })
            .collect(),
    }
}

fn unquoted(word: &str) -> Result<String, &'static str> {
    Ok(words(word, Quotes::Remove)?.into_iter().next().unwrap_or_default())
}

/// Puts the values of an environment for `$NAME`, `${NAME}`, `${NAME:-other}` and `${NAME:+other}`, and takes quotes away. Between single quotes
/// nothing is put in.
pub(super) fn expand(text: &str, env: &[String], quotes: Quotes) -> Result<String, &'static str> {
    let lookup = |name: &str| {
        env.iter().find_map(|pair| pair.split_once('=').filter(|(known, _)| *known == name)).map(|(_, v)| v)
    };
    let mut out = String::new();
    let mut open: Option<char> = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '"' | '\'' if quotes == Quotes::Remove && open.is_none_or(|quote| quote == c) => {
                open = if open.is_some() { None } else { Some(c) };
            }
            '\\' if open != Some('\'') => {
                let next = rest.chars().next();
                // In double quotes a backslash is one, unless it escapes something.
                if open == Some('"') && !matches!(next, Some('"' | '$' | '\\')) {
                    out.push('\\');
                    continue;
                }
                out.extend(next);
                rest = &rest[next.map_or(0, char::len_utf8)..];
            }
            '$' if open != Some('\'') => {
                let (value, after) = variable(rest, &lookup, env)?;
                out.push_str(&value);
                rest = after;
            }
            c => out.push(c),
        }
    }
    if open.is_some() { Err("a quote is not closed") } else { Ok(out) }
}

/// What stands behind a `$`: its value, and what comes after it.
fn variable<'a, 'e>(
    text: &'a str,
    lookup: &impl Fn(&str) -> Option<&'e str>,
    env: &[String],
) -> Result<(String, &'a str), &'static str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let Some(inner) = text.strip_prefix('{') else {
        let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
        if end == 0 {
            return Ok(("$".to_owned(), text));
        }
        return Ok((lookup(&text[..end]).unwrap_or_default().to_owned(), &text[end..]));
    };
    let end = inner.find(|c| !is_name(c)).filter(|end| *end > 0).ok_or("`${` is not closed")?;
    let (name, rest) = inner.split_at(end);
    let value = lookup(name).filter(|value| !value.is_empty());
    if let Some(after) = rest.strip_prefix('}') {
        return Ok((lookup(name).unwrap_or_default().to_owned(), after));
    }
    let close = rest.find('}').ok_or("`${` is not closed")?;
    let (operator, after) = (&rest[..close], &rest[close + 1..]);
    if operator.contains('$') {
        return Err("a variable within a variable is not supported");
    }
    let word = |text| expand(text, env, Quotes::Remove);
    let value = match (operator.get(..2), value) {
        (Some(":-"), Some(value)) => value.to_owned(),
        (Some(":-"), None) => word(&operator[2..])?,
        (Some(":+"), Some(_)) => word(&operator[2..])?,
        (Some(":+"), None) => String::new(),
        _ => return Err("of variables there are `${NAME}`, `${NAME:-other}` and `${NAME:+other}`"),
    };
    Ok((value, after))
}
