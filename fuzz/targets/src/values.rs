//! JSON values made of bytes, biased towards what the key encoding treats specially.

use serde_json::{Map, Number, Value, json};

/// Elements of a list and fields of an object at most.
const MOST: u8 = 4;
/// Arrays and objects nest so deep at most.
const DEPTH: u8 = 5;
const ALPHABET: [char; 11] = ['$', '\0', '\u{1}', '\u{2}', 'a', 'b', '"', '\\', '\n', 'é', '\u{10ffff}'];

/// What a shown key means: without the `$` that is put before the only name of an object.
pub fn unescaped(shown: Value) -> Value {
    match shown {
        Value::Array(elements) => elements.into_iter().map(unescaped).collect(),
        Value::Object(fields) => {
            let only = fields.len() == 1;
            let name = |name: String| if only && name.starts_with("$$") { name[1..].to_owned() } else { name };
            fields.into_iter().map(|(n, value)| (name(n), unescaped(value))).collect()
        }
        scalar => scalar,
    }
}

/// Bytes that decide, one after the other; zeros when they are used up.
pub struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// A component of a key; `None` is missing.
    pub fn component(&mut self) -> Option<Value> {
        let class = self.byte();
        (!class.is_multiple_of(11)).then(|| self.value(class, DEPTH))
    }

    fn value(&mut self, class: u8, depth: u8) -> Value {
        match class % 11 {
            1 => Value::Null,
            2 => Value::Bool(class.is_multiple_of(2)),
            3 | 4 => self.integer(),
            5 | 6 => Number::from_f64(f64::from_bits(self.word())).map_or(Value::Null, Value::Number),
            9 if depth > 0 => (0..self.byte() % MOST).map(|_| self.element(depth - 1)).collect(),
            10 if depth > 0 => {
                let fields = (0..self.byte() % MOST).map(|_| (self.text(), self.element(depth - 1)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
            _ => Value::String(self.text()),
        }
    }

    fn element(&mut self, depth: u8) -> Value {
        let class = self.byte();
        self.value(class, depth)
    }

    /// A small one, one near a power of two, or any.
    fn integer(&mut self) -> Value {
        let how = self.byte();
        let near = i64::from(self.byte() as i8);
        match how % 4 {
            0 => json!(near),
            1 => json!((1i64 << (how >> 2)).wrapping_add(near)),
            2 => json!((1i64 << (how >> 2)).wrapping_add(near).wrapping_neg()),
            _ => json!(self.word()),
        }
    }

    fn text(&mut self) -> String {
        (0..self.byte() % 8).map(|_| ALPHABET[usize::from(self.byte()) % ALPHABET.len()]).collect()
    }
}
