//! Numbers of JSON, exactly.

use super::{EncodeError, TWO_POW_53};
use std::fmt::Write as _;

/// A number as an index holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ExactNumber {
    /// From −2^63 to 2^64 − 1.
    Integer {
        negative: bool,
        magnitude: u64,
    },
    Float(f64),
}

const ZERO: ExactNumber = ExactNumber::Integer { negative: false, magnitude: 0 };
/// From here on a number has more than 17 significant digits. So many tell any two f64 apart: a text of more may mean a number
/// between two of them.
const MORE_THAN_17_DIGITS: u64 = 100_000_000_000_000_000;
/// The most significant digits that an f64 has when it is written out.
const MOST_DIGITS: usize = 767;
/// Digits and powers of ten that fit 64 bits.
const U64_DIGITS: usize = 19;
/// Powers of ten that an f64 holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// Exponents beyond this are as good as endless: the longest request or document cannot make up for them with digits.
const ENDLESS: i64 = 1 << 40;

/// Reads the text of a JSON number, without white space around it, in a time that grows with its length.
///
/// # Errors
/// Not a number, beyond the range of f64, or inexact: of more than 17 significant digits, and neither an integer of 64 bits nor
/// an f64.
pub(crate) fn read_number(text: &[u8]) -> Result<ExactNumber, EncodeError> {
    let parts = Parts::of(text).ok_or(EncodeError::NotJson)?;
    let digits = parts.whole.len() + parts.fraction.len();
    if digits <= U64_DIGITS {
        let mantissa = mantissa(parts.whole.iter().chain(parts.fraction));
        return parts.short(mantissa, parts.exponent - parts.fraction.len() as i64, || parse(text));
    }
    let Some(long) = Significant::of(&parts) else { return Ok(ZERO) };
    if long.count <= U64_DIGITS {
        return parts.short(mantissa(long.digits(&parts)), long.scale, || parse(long.normal(&parts).as_bytes()));
    }
    if long.scale == 0 && long.count == U64_DIGITS + 1 {
        let magnitude = long.digits(&parts).fold(0u128, |n, d| n * 10 + u128::from(d - b'0'));
        if let Some(integer) = u64::try_from(magnitude).ok().and_then(|m| parts.integer(m)) {
            return Ok(integer);
        }
    }
    let float = finite(parse(long.normal(&parts).as_bytes()))?;
    if !long.is(float, &parts) {
        return Err(EncodeError::Inexact);
    }
    Ok(ExactNumber::Float(if parts.negative { -float } else { float }))
}

/// Whether the text is a JSON number, without white space around it.
pub(super) fn is_number(text: &[u8]) -> bool {
    Parts::of(text).is_some()
}

/// The f64 nearest to the text of a JSON number, without its sign; infinite beyond the range.
pub(crate) fn nearest(text: &[u8]) -> Option<f64> {
    let parts = Parts::of(text)?;
    match Significant::of(&parts) {
        None => Some(0.0),
        Some(long) => Some(parse(long.normal(&parts).as_bytes())),
    }
}

fn mantissa<'a>(digits: impl Iterator<Item = &'a u8>) -> u64 {
    digits.fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
}

/// Correctly rounded; the text has been read already.
fn parse(text: &[u8]) -> f64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::INFINITY)
}

/// Without its sign.
fn finite(float: f64) -> Result<f64, EncodeError> {
    if float.is_finite() { Ok(float.abs()) } else { Err(EncodeError::NumberRange) }
}

/// A number's text taken apart.
struct Parts<'a> {
    negative: bool,
    /// Digits before the point.
    whole: &'a [u8],
    /// Digits behind the point.
    fraction: &'a [u8],
    exponent: i64,
}

impl<'a> Parts<'a> {
    /// None for what is no JSON number.
    fn of(text: &'a [u8]) -> Option<Self> {
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let (whole, mut rest) = digits(text);
        if whole.is_empty() || (whole.len() > 1 && whole[0] == b'0') {
            return None;
        }
        let mut fraction: &[u8] = &[];
        if let [b'.', behind @ ..] = rest {
            (fraction, rest) = digits(behind);
            if fraction.is_empty() {
                return None;
            }
        }
        let mut exponent = 0i64;
        if let [b'e' | b'E', behind @ ..] = rest {
            let minus = behind.first() == Some(&b'-');
            let behind = behind.strip_prefix(b"-").or(behind.strip_prefix(b"+")).unwrap_or(behind);
            let (power, end) = digits(behind);
            if power.is_empty() {
                return None;
            }
            rest = end;
            exponent = power.iter().fold(0, |n, digit| (n * 10 + i64::from(digit - b'0')).min(ENDLESS));
            if minus {
                exponent = -exponent;
            }
        }
        rest.is_empty().then_some(Self { negative, whole, fraction, exponent })
    }

    fn integer(&self, magnitude: u64) -> Option<ExactNumber> {
        let fits = !self.negative || magnitude <= 1 << 63;
        fits.then_some(ExactNumber::Integer { negative: self.negative, magnitude })
    }

    /// A number of few digits: `mantissa` × 10^`scale`. `rounded` answers the nearest f64.
    fn short(
        &self,
        mut mantissa: u64,
        mut scale: i64,
        rounded: impl FnOnce() -> f64,
    ) -> Result<ExactNumber, EncodeError> {
        if mantissa == 0 {
            return Ok(ZERO);
        }
        while scale < 0 && mantissa.is_multiple_of(10) {
            mantissa /= 10;
            scale += 1;
        }
        if (0..=U64_DIGITS as i64).contains(&scale)
            && let Some(magnitude) = mantissa.checked_mul(10u64.pow(scale as u32))
            && let Some(integer) = self.integer(magnitude)
        {
            return Ok(integer);
        }
        let float = match POWERS.get(scale.unsigned_abs() as usize) {
            // Both are exact, so that the result is rounded once.
            Some(power) if mantissa < TWO_POW_53 => {
                if scale < 0 {
                    mantissa as f64 / power
                } else {
                    mantissa as f64 * power
                }
            }
            _ => finite(rounded())?,
        };
        if mantissa >= MORE_THAN_17_DIGITS {
            while mantissa.is_multiple_of(10) {
                mantissa /= 10;
                scale += 1;
            }
            if mantissa >= MORE_THAN_17_DIGITS && !is_exactly(float, Big::from(mantissa), scale) {
                return Err(EncodeError::Inexact);
            }
        }
        Ok(ExactNumber::Float(if self.negative { -float } else { float }))
    }
}

/// The digits that the text begins with, and the rest.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|b| b.is_ascii_digit()).count())
}

/// Where the digits lie that count, from the first to the last that is not zero.
struct Significant {
    first: usize,
    count: usize,
    /// The power of ten of the last one.
    scale: i64,
}

impl Significant {
    /// None: the number is zero.
    fn of(parts: &Parts<'_>) -> Option<Self> {
        let all = || parts.whole.iter().chain(parts.fraction);
        let first = all().position(|digit| *digit != b'0')?;
        let from_end = all().rev().position(|digit| *digit != b'0')?;
        let count = parts.whole.len() + parts.fraction.len() - from_end - first;
        let scale = parts.exponent - parts.fraction.len() as i64 + from_end as i64;
        Some(Self { first, count, scale })
    }

    fn digits<'a>(&self, parts: &Parts<'a>) -> impl Iterator<Item = &'a u8> {
        parts.whole.iter().chain(parts.fraction).skip(self.first).take(self.count)
    }

    /// The number without its sign, written shortly, with the same nearest f64.
    fn normal(&self, parts: &Parts<'_>) -> String {
        let kept = self.count.min(MOST_DIGITS + 1);
        let mut text: String = self.digits(parts).take(kept).map(|digit| char::from(*digit)).collect();
        let mut scale = self.scale + (self.count - kept) as i64;
        if kept < self.count {
            // No f64, nor the middle between two, has so many digits: what is cut off counts as more than nothing.
            text.push('1');
            scale -= 1;
        }
        // Writing into a String cannot fail.
        let _ = write!(text, "e{scale}");
        text
    }

    fn is(&self, float: f64, parts: &Parts<'_>) -> bool {
        if self.count > MOST_DIGITS {
            return false;
        }
        let mut mantissa = Big::from(0);
        self.digits(parts).for_each(|digit| mantissa.multiply_add(10, u64::from(digit - b'0')));
        is_exactly(float, mantissa, self.scale)
    }
}

/// Whether `float`, which is positive and the f64 nearest to it, is `mantissa` × 10^`scale`. The mantissa does not end in zero.
fn is_exactly(float: f64, mut mantissa: Big, scale: i64) -> bool {
    if float == 0.0 {
        return false;
    }
    // odd × 2^power
    let (exponent, fraction) = (float.to_bits() >> 52, float.to_bits() & ((1 << 52) - 1));
    let bits = if exponent == 0 { fraction } else { fraction | 1 << 52 };
    let power = exponent.max(1) as i64 - 1_075 + i64::from(bits.trailing_zeros());
    let mut float = Big::from(bits >> bits.trailing_zeros());
    if scale < 0 {
        // mantissa = odd × 2^(power − scale) × 5^−scale, which ends in zero unless the powers are equal.
        if power != scale {
            return false;
        }
        float.multiply_power(5, -scale);
    } else {
        // mantissa × 5^scale = odd × 2^(power − scale)
        if power < scale {
            return false;
        }
        mantissa.multiply_power(5, scale);
        float.multiply_power(2, power - scale);
    }
    mantissa.limbs == float.limbs
}

/// A natural number of any f64's digits, the lowest limb first.
struct Big {
    limbs: [u64; LIMBS],
}

/// 10^767 has 2,548 bits; so has 2^53 × 5^1,074.
const LIMBS: usize = 40;

impl From<u64> for Big {
    fn from(number: u64) -> Self {
        let mut limbs = [0; LIMBS];
        limbs[0] = number;
        Self { limbs }
    }
}

impl Big {
    fn multiply_add(&mut self, factor: u64, add: u64) {
        let mut carry = u128::from(add);
        let used = self.limbs.iter().rposition(|limb| *limb != 0).map_or(1, |last| (last + 2).min(LIMBS));
        for limb in &mut self.limbs[..used] {
            carry += u128::from(*limb) * u128::from(factor);
            *limb = carry as u64;
            carry >>= 64;
        }
        debug_assert_eq!(carry, 0, "a number beyond those that callers bound");
    }

    /// Multiplies by `factor`^`exponent`; the factor has 4 bits at most.
    fn multiply_power(&mut self, factor: u64, exponent: i64) {
        const STEP: i64 = 16;
        (0..exponent / STEP).for_each(|_| self.multiply_add(factor.pow(STEP as u32), 0));
        (0..exponent % STEP).for_each(|_| self.multiply_add(factor, 0));
    }
}

#[cfg(test)]
mod tests;
