//! Seeded choices and the well-formed pieces that cases are made of.

/// SplitMix64: the same numbers on each machine, whatever version of a crate.
pub struct Dice(u64);

impl Dice {
    /// Those of one case.
    pub fn new(seed: u64, class: usize, index: usize) -> Self {
        Self(seed ^ (class as u64).wrapping_mul(0x9e37_79b9) ^ (index as u64).wrapping_mul(0x85eb_ca6b_0000_0001))
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    /// In `from..to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from)
    }

    pub fn coin(&mut self) -> bool {
        self.roll() & 1 == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// A few words in several scripts; never one that the pod's model obeys.
    pub fn text(&mut self) -> String {
        let words = [
            "where",
            "is",
            "my",
            "card",
            "geld",
            "überweisung",
            "猫",
            "карта",
            "😀",
            "مرحبا",
            "e\u{301}",
            "0",
            "-",
            "null",
            "\u{200d}",
            "ﬀ",
            "İ",
            "\u{1f3f3}\u{fe0f}",
        ];
        let count = self.between(1, 6);
        (0..count).map(|_| self.pick(&words)).collect::<Vec<_>>().join(" ")
    }

    /// A letter or digit token.
    pub fn token(&mut self) -> String {
        let length = self.between(1, 12);
        (0..length).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    /// A JSON string with or without escapes.
    pub fn string(&mut self) -> String {
        let text = self.text();
        if self.coin() {
            return serde_json::to_string(&text).unwrap();
        }
        let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{escaped}\"")
    }

    fn space(&mut self) -> &'static str {
        self.pick(&["", " ", "\n", "\t", "\r\n", "  "])
    }

    /// A body that is answered 200; no white space behind it.
    pub fn good(&mut self) -> String {
        let [a, b, c, d] = [(); 4].map(|()| self.space());
        if self.coin() {
            return format!("{a}{{{b}\"text\"{c}:{d}{}}}", self.string());
        }
        let count = self.between(1, 8);
        let list: Vec<String> = (0..count).map(|_| self.string()).collect();
        format!("{a}{{\"texts\"{b}:{c}[{d}{}]}}", list.join(&format!("{a},{b}")))
    }

    /// `good` as a key's value, one of the two forms, with `value` in place of a text.
    pub fn around(&mut self, value: &str) -> String {
        match self.below(3) {
            0 => format!("{{\"text\": {value}}}"),
            1 => format!("{{\"texts\": [{value}]}}"),
            _ => format!("{{\"texts\": [{}, {value}]}}", self.string()),
        }
    }
}

/// Bytes with `insert` at `at`.
pub fn inserted(bytes: &[u8], at: usize, insert: &[u8]) -> Vec<u8> {
    [&bytes[..at], insert, &bytes[at..]].concat()
}
