//! What people see: steps with their times, numbers with separators, a little colour on terminals.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    time::Duration,
};

/// Columns that a step's text takes before its time.
const STEP_WIDTH: usize = 76;

fn styled(code: &str, text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\u{1b}[{code}m{text}\u{1b}[0m") }
}

pub fn bold(text: &str) -> String {
    styled("1", text)
}

pub fn dim(text: &str) -> String {
    styled("2", text)
}

pub fn green(text: &str) -> String {
    styled("32", text)
}

pub fn red(text: &str) -> String {
    styled("31", text)
}

/// A line that says what was done and how long it took.
pub fn step(text: &str, took: Duration) {
    let filler = " ".repeat(STEP_WIDTH.saturating_sub(text.chars().count()));
    println!("  {} {text}{filler} {:>9}", green("✓"), time(took));
    let _ = std::io::stdout().flush();
}

/// A duration in the unit that suits it.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 60.0 {
        format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60)
    } else if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else if seconds >= 0.001 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.0} µs", seconds * 1e6)
    }
}

/// `1234567` as `1,234,567`.
pub fn group(number: impl Display) -> String {
    let text = number.to_string();
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let mut out = String::from(sign);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(group(7), "7");
        assert_eq!(group(1_234), "1,234");
        assert_eq!(group(-1_234_567), "-1,234,567");
    }

    #[test]
    fn times_have_a_fitting_unit() {
        assert_eq!(time(Duration::from_micros(140)), "140 µs");
        assert_eq!(time(Duration::from_micros(2_500)), "2.50 ms");
        assert_eq!(time(Duration::from_secs(83)), "1 min 23 s");
    }
}
