//! `$GENERATE`, BIND's directive for many records of one form.
//!
//! `$GENERATE START-STOP[/STEP] OWNER [TTL] [CLASS] TYPE RDATA`: in owner and RDATA, `$` stands for the number, `$$` and `\$`
//! for the sign itself, and `${OFFSET[,WIDTH[,BASE]]}` for the number plus an offset, padded with zeros, in base `d`, `o`, `x`
//! or `X`, or as labels of one digit each, the lowest first (`n`, `N`).

use super::Problem;

/// The records that one directive stands for.
pub(super) struct Generate<'a> {
    start: u32,
    stop: u32,
    step: u32,
    /// The owner, with signs in it.
    pub owner: &'a str,
    /// TTL, class and type.
    pub middle: &'a [&'a str],
    /// The RDATA, with signs in it, without the quotation marks around it.
    pub rdata: &'a str,
}

impl<'a> Generate<'a> {
    /// Reads the words behind the directive.
    pub fn new(words: &'a [&'a str]) -> Result<Self, Problem> {
        let [range, owner, middle @ .., rdata] = words else {
            return Err(bad("it needs a range, an owner, a type and RDATA"));
        };
        if middle.is_empty() {
            return Err(bad("it needs a range, an owner, a type and RDATA"));
        }
        let (start, stop, step) = read_range(range).ok_or_else(|| bad(format!("`{range}` is not a range")))?;
        let rdata = rdata.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(rdata);
        Ok(Self { start, stop, step, owner, middle, rdata })
    }

    /// How many records.
    pub fn count(&self) -> usize {
        ((self.stop - self.start) / self.step) as usize + 1
    }

    /// The numbers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        (self.start..=self.stop).step_by(self.step as usize)
    }
}

/// A text with the signs in it replaced by a number.
pub(super) fn expand(text: &str, number: u32) -> Result<String, Problem> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        let sign = &rest[at..];
        if let Some(escaped) = sign.strip_prefix('\\') {
            let length = 1 + escaped.chars().next().map_or(0, char::len_utf8);
            out.push_str(&sign[..length]);
            rest = &sign[length..];
        } else if let Some(tail) = sign.strip_prefix("$$") {
            out.push('$');
            rest = tail;
        } else if let Some(modifier) = sign.strip_prefix("${") {
            let (modifier, tail) = modifier.split_once('}').ok_or_else(|| bad("${ is not closed"))?;
            modify(modifier, number, &mut out)?;
            rest = tail;
        } else {
            out.push_str(&number.to_string());
            rest = &sign[1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What `${MODIFIER}` stands for.
fn modify(modifier: &str, number: u32, out: &mut String) -> Result<(), Problem> {
    let malformed = || bad(format!("${{{modifier}}} is not ${{OFFSET,WIDTH,BASE}}"));
    let mut parts = modifier.split(',');
    let offset: i32 = parts.next().and_then(|part| part.parse().ok()).ok_or_else(malformed)?;
    let width: usize = parts.next().map_or(Some(0), |part| part.parse().ok()).ok_or_else(malformed)?;
    let base = parts.next().unwrap_or("d");
    if parts.next().is_some() || width > MAX_WIDTH {
        return Err(malformed());
    }
    let value = i64::from(number) + i64::from(offset);
    // Negative numbers have no digits in these bases but those of 32 bits.
    let bits = value as u32;
    let text = match base {
        "d" => format!("{value:0width$}"),
        "o" => format!("{bits:0width$o}"),
        "x" => format!("{bits:0width$x}"),
        "X" => format!("{bits:0width$X}"),
        "n" if value >= 0 => nibbles(format!("{bits:x}"), width),
        "N" if value >= 0 => nibbles(format!("{bits:X}"), width),
        _ => return Err(malformed()),
    };
    out.push_str(&text);
    Ok(())
}

/// Digits as labels, the last first. The width counts the dots, too, and may end with one.
fn nibbles(digits: String, width: usize) -> String {
    let mut text = String::new();
    let mut digits = digits.chars().rev().peekable();
    loop {
        text.push(digits.next().unwrap_or('0'));
        if text.len() >= width && digits.peek().is_none() {
            return text;
        }
        text.push('.');
        if text.len() >= width && digits.peek().is_none() {
            return text;
        }
    }
}

fn read_range(word: &str) -> Option<(u32, u32, u32)> {
    let (range, step) = word.split_once('/').unwrap_or((word, "1"));
    let (start, stop) = range.split_once('-')?;
    let number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?);
    (start <= stop && stop <= i32::MAX as u32 && step > 0).then_some((start, stop, step))
}

pub(super) fn bad(reason: impl Into<String>) -> Problem {
    Problem::BadGenerate(reason.into())
}

/// Longest number: what is longer fits into no label.
const MAX_WIDTH: usize = 127;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_replaced_as_bind_replaces_them() {
        for (text, number, expected) in [
            ("host-$", 7, "host-7"),
            ("$.$", 7, "7.7"),
            ("a$$b", 7, "a$b"),
            ("a\\$b$", 7, "a\\$b7"),
            ("a\\\\$", 7, "a\\\\7"),
            ("${0}", 7, "7"),
            ("${10}", 7, "17"),
            ("${-10}", 7, "-3"),
            ("${0,3}", 7, "007"),
            ("${0,3,d}", 7, "007"),
            ("${0,3,d}", 1234, "1234"),
            ("${0,2,o}", 26, "32"),
            ("${0,0,x}", 255, "ff"),
            ("${0,4,X}", 255, "00FF"),
            ("${0,0,n}", 26, "a.1"),
            ("${0,1,n}", 26, "a.1"),
            ("${0,3,n}", 26, "a.1"),
            ("${0,4,n}", 26, "a.1."),
            ("${0,5,N}", 26, "A.1.0"),
            ("${0,1,n}", 0, "0"),
            ("${0,2,n}", 0, "0."),
        ] {
            assert_eq!(expand(text, number).as_deref(), Ok(expected), "{text} {number}");
        }
        for text in ["${", "${}", "${a}", "${1", "${1,2,q}", "${1,2,d,3}", "${1,,d}", "${0,300,d}", "${-1,0,n}"] {
            assert!(expand(text, 0).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_go_up_and_may_have_steps() {
        for (range, count) in
            [("1-3", Some(3)), ("0-0", Some(1)), ("1-10/4", Some(3)), ("0-2147483647/2147483647", Some(2))]
        {
            let words = [range, "h$", "A", "192.0.2.1"];
            let generate = Generate::new(&words).ok();
            assert_eq!(generate.as_ref().map(Generate::count), count, "{range}");
            assert_eq!(generate.map(|generate| generate.numbers().count()), count, "{range}");
        }
        for range in ["3-1", "1", "-1-2", "1-2/0", "1-2147483648", "a-b", "1-2-3", "1-2/", "+1-2"] {
            assert!(Generate::new(&[range, "h$", "A", "192.0.2.1"]).is_err(), "{range}");
        }
        assert!(Generate::new(&["1-2", "h$", "A"]).is_err());
    }
}
