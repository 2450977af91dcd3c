//! Numbers by example, and against integers of any length.

use super::*;
use proptest::prelude::*;

#[derive(Debug, PartialEq)]
enum Read {
    Integer(i128),
    Float(f64),
    Inexact,
    Range,
    NotJson,
}
use Read::{Float, Inexact, Integer, NotJson, Range};

fn read(text: &str) -> Read {
    match read_number(text.as_bytes()) {
        Ok(ExactNumber::Integer { negative, magnitude }) => {
            Integer(if negative { -i128::from(magnitude) } else { i128::from(magnitude) })
        }
        Ok(ExactNumber::Float(float)) => Float(float),
        Err(EncodeError::Inexact) => Inexact,
        Err(EncodeError::NumberRange) => Range,
        Err(_) => NotJson,
    }
}

#[test]
fn numbers_by_example() {
    // The whole of 0.1, of the smallest f64 that is not subnormal, and of the largest.
    let tenth = "0.1000000000000000055511151231257827021181583404541015625";
    let normal = format!("{:.1074}", f64::MIN_POSITIVE);
    let smallest = format!("{:.1074}", 5e-324);
    let largest = format!("{:.0}", f64::MAX);
    let beyond_largest = "1797693134862315807937289714053034150799341327100378269361737789804449682927647509466490179775872070963302864166928879109465555478519404026306574886715058206819089020007083836762738548458177115317644757302700698555713669596228429148198608349364752927190741684443655107043427115596995080930428801779041744977920";
    for (text, expected) in [
        ("0", Integer(0)),
        ("-0", Integer(0)),
        ("-0.0", Integer(0)),
        ("0e99999999999999999999", Integer(0)),
        ("-0.000e-7", Integer(0)),
        ("1", Integer(1)),
        ("1.0", Integer(1)),
        ("1e0", Integer(1)),
        ("1E+2", Integer(100)),
        ("1e3", Integer(1_000)),
        ("1e0000000000000000000000003", Integer(1_000)),
        ("100e-2", Integer(1)),
        ("12.50e1", Integer(125)),
        ("0.1", Float(0.1)),
        ("-7.5", Float(-7.5)),
        ("1e-1", Float(0.1)),
        ("9007199254740993", Integer((1 << 53) + 1)),
        ("9007199254740993.0", Integer((1 << 53) + 1)),
        ("9007199254740993e0", Integer((1 << 53) + 1)),
        ("900719925474099.3e1", Integer((1 << 53) + 1)),
        ("9.007199254740993000000000000000000000e15", Integer((1 << 53) + 1)),
        ("12345678901234567e1", Integer(123_456_789_012_345_670)),
        ("9223372036854775807", Integer(i128::from(i64::MAX))),
        ("-9223372036854775808", Integer(i128::from(i64::MIN))),
        ("-9223372036854775808.000", Integer(i128::from(i64::MIN))),
        ("-9223372036854775809", Inexact),
        ("-9223372036854777856", Float(-9_223_372_036_854_777_856.0)),
        ("18446744073709551615", Integer(i128::from(u64::MAX))),
        ("18446744073709551615.0", Integer(i128::from(u64::MAX))),
        ("1844674407370955161.5e1", Integer(i128::from(u64::MAX))),
        ("-18446744073709551615", Inexact),
        ("18446744073709551616", Float(18_446_744_073_709_551_616.0)),
        ("18446744073709551617", Inexact),
        ("18446744073709551617.0", Inexact),
        ("18446744073709551620", Inexact),
        ("18446744073709552000", Float(18_446_744_073_709_551_616.0)),
        ("1e19", Integer(10_000_000_000_000_000_000)),
        ("-1e19", Float(-1e19)),
        ("1e20", Float(1e20)),
        ("100000000000000000001", Inexact),
        ("36893488147419103232", Float(36_893_488_147_419_103_232.0)),
        ("36893488147419103233", Inexact),
        ("0.10000000000000001", Float(0.1)),
        ("0.100000000000000010", Float(0.1)),
        ("0.100000000000000005", Inexact),
        ("0.1000000000000000055511151231257827", Inexact),
        (tenth, Float(0.1)),
        (&format!("{tenth}000"), Float(0.1)),
        (&format!("-{tenth}"), Float(-0.1)),
        (&format!("{tenth}e0"), Float(0.1)),
        (&format!("{tenth}1"), Inexact),
        ("0.5000000000000000000000000000000000001", Inexact),
        ("0.5000000000000000000000000000000000000", Float(0.5)),
        ("123456789012345678.5", Inexact),
        // 2^56 + 16, which is even enough to be an f64, and a half that is not.
        ("72057594037927952.0", Integer((1 << 56) + 16)),
        ("72057594037927952.5", Inexact),
        // Exact, of 18 digits: 2^-17 × 131073.
        ("1.00000762939453125", Float(1.0 + 1.0 / 131_072.0)),
        ("1.00000762939453126", Inexact),
        ("1e308", Float(1e308)),
        ("1.7976931348623157e308", Float(f64::MAX)),
        ("1.7976931348623158e308", Float(f64::MAX)),
        ("1.7976931348623159e308", Range),
        ("1e309", Range),
        ("-1e309", Range),
        ("1e400", Range),
        ("1e99999999999999999999", Range),
        ("123456789012345678901e400", Range),
        (&largest, Float(f64::MAX)),
        (&format!("{largest}.0"), Float(f64::MAX)),
        (&format!("{largest}.5"), Inexact),
        (beyond_largest, Range),
        ("5e-324", Float(5e-324)),
        ("4e-324", Float(5e-324)),
        ("2e-324", Float(0.0)),
        ("1e-400", Float(0.0)),
        ("1e-99999999999999999999", Float(0.0)),
        ("123456789012345678e-400", Inexact),
        (&smallest, Float(5e-324)),
        (&normal, Float(f64::MIN_POSITIVE)),
        (&format!("{smallest}1"), Inexact),
        ("2.2250738585072011e-308", Float(2.225_073_858_507_201e-308)),
        ("", NotJson),
        ("-", NotJson),
        ("+1", NotJson),
        ("01", NotJson),
        ("00", NotJson),
        (".5", NotJson),
        ("5.", NotJson),
        ("5.e1", NotJson),
        ("1e", NotJson),
        ("1e+", NotJson),
        ("1_000", NotJson),
        ("0x10", NotJson),
        ("NaN", NotJson),
        ("-Infinity", NotJson),
        ("1 ", NotJson),
        ("1.2.3", NotJson),
    ] {
        assert_eq!(read(text), expected, "{text}");
    }
}

#[test]
fn digits_in_hundreds_of_thousands_are_read_at_once() {
    let zeros = "0".repeat(700_000);
    for (text, expected) in [
        (format!("1{zeros}"), Range),
        (format!("1{zeros}e-700000"), Integer(1)),
        (format!("0.{zeros}1e700001"), Integer(1)),
        (format!("0.{zeros}1e700000"), Float(0.1)),
        (format!("12.{zeros}"), Integer(12)),
        (format!("12.5{zeros}"), Float(12.5)),
        (format!("12.5{zeros}1"), Inexact),
        (format!("0.{zeros}1"), Float(0.0)),
        (format!("0.{zeros}"), Integer(0)),
        ("1".repeat(700_000), Range),
        (format!("0.{}", "1".repeat(700_000)), Inexact),
        (format!("1e{}", "0".repeat(700_000)), Integer(1)),
        (format!("1e{}", "9".repeat(700_000)), Range),
    ] {
        assert_eq!(read(&text), expected, "{:.20} of {} bytes", text, text.len());
    }
    let tie = format!("{:.60}", 1.0 + f64::EPSILON / 2.0 * 3.0);
    assert!(nearest(tie.as_bytes()).is_some());
    // Beyond the middle of two only by what stands far behind.
    let middle = "1.00000000000000011102230246251565404236316680908203125";
    assert_eq!(nearest(middle.as_bytes()), Some(1.0));
    assert_eq!(nearest(format!("{middle}{}1", "0".repeat(2_000)).as_bytes()), Some(1.0 + f64::EPSILON));
}

/// The digits of whole × 10^scale as an integer and a power of ten, for numbers that fit.
fn written(digits: &str, scale: i32, point: usize, zeros: usize) -> String {
    let (whole, fraction) = digits.split_at(point.min(digits.len()));
    let whole = if whole.is_empty() { "0" } else { whole };
    let (tail, power) = (fraction.len() as i32, scale);
    format!("{whole}.{fraction}{}e{}", "0".repeat(zeros + 1), power + tail)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn integers_are_themselves_however_they_are_written(n in any::<u64>(), negative in any::<bool>(), point in 1usize..25, zeros in 0usize..40) {
        let expected = if negative { -i128::from(n) } else { i128::from(n) };
        let sign = if negative { "-" } else { "" };
        for text in [n.to_string(), format!("{n}.0"), written(&n.to_string(), 0, point, zeros)] {
            let found = read(&format!("{sign}{text}"));
            if expected >= i128::from(i64::MIN) {
                prop_assert_eq!(found, Integer(expected));
            } else if n as f64 as u128 == u128::from(n) {
                prop_assert_eq!(found, Float(expected as f64));
            } else {
                // Of 18 digits and less only if it ends in zeros.
                let significant = n.to_string().trim_end_matches('0').len();
                prop_assert_eq!(found, if significant > 17 { Inexact } else { Float(expected as f64) });
            }
        }
    }

    #[test]
    fn every_float_is_itself_in_all_its_digits_and_in_few(bits in any::<u64>(), near in -60i32..60, wide in any::<bool>()) {
        let float = if wide { f64::from_bits(bits) } else { (bits as i64 as f64) * f64::from(near).exp2() };
        prop_assume!(float.is_finite());
        let as_integer = |float: f64| (float.fract() == 0.0 && float >= i64::MIN as f64 && float < 18_446_744_073_709_551_616.0).then_some(float as i128);
        let expected = || as_integer(float).map_or(Float(float), Integer);
        prop_assert_eq!(read(&format!("{float:.1100}")), expected());
        prop_assert_eq!(read(&format!("{float:.1100e}")), expected());
        prop_assert_eq!(read(&format!("{float:.16e}")), if let Float(_) = expected() { expected() } else { read(&format!("{float:.16e}")) });
        prop_assert_eq!(nearest(format!("{float:e}").trim_start_matches('-').as_bytes()), Some(float.abs()));
        if float != 0.0 {
            // One more digit behind all of them.
            let whole = format!("{float:.1100}");
            prop_assert_eq!(read(&format!("{whole}7")), Inexact);
        }
    }

    #[test]
    fn of_two_texts_of_many_digits_no_two_become_one(mut digits in "[1-9][0-9]{17,60}", exponent in -40i32..40) {
        let last = digits.pop().unwrap();
        let other = if last == '9' { '8' } else { char::from(last as u8 + 1) };
        let (a, b) = (read(&format!("{digits}{last}e{exponent}")), read(&format!("{digits}{other}e{exponent}")));
        prop_assert!(a != b || a == Inexact, "{:?}", a);
    }

    #[test]
    fn garbage_is_none(text in "[-+0-9.eE_x]{0,12}") {
        prop_assert_eq!(read(&text) == NotJson, serde_json::from_str::<serde::de::IgnoredAny>(&text).is_err());
    }
}
