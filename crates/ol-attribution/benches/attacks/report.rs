//! What an attack gained.

/// What is reported of an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// The attacker's pay over what honest behaviour would have been paid.
    Gain,
    /// The attacker's part of what is paid.
    Share,
    /// What the attacker gets back of each coin spent.
    Return,
    /// Units more than the exact fraction.
    Units,
}

impl Measure {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gain => "gain",
            Self::Share => "share",
            Self::Return => "return",
            Self::Units => "units",
        }
    }
}

/// An attack with its counter-measure on and off.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) attack: String,
    pub(crate) measure: Measure,
    /// What is acceptable.
    pub(crate) limit: f64,
    /// What stands against it.
    pub(crate) counter: &'static str,
    /// With the counter-measure.
    pub(crate) with: f64,
    /// Without it.
    pub(crate) without: f64,
}

impl Row {
    /// Whether the limit holds.
    pub(crate) fn holds(&self) -> bool {
        self.with <= self.limit
    }

    /// Whether the experiment can see the attack: without the counter-measure
    /// the limit is passed.
    pub(crate) fn can_fail(&self) -> bool {
        self.without > self.limit
    }

    pub(crate) fn markdown(&self) -> String {
        let verdict = match (self.holds(), self.can_fail()) {
            (true, true) => "holds",
            (true, false) => "holds, also without",
            (false, _) => "**does not hold**",
        };
        format!(
            "| {} | {} | {} | {} | {:.3} | {:.3} | {verdict} |\n",
            self.attack,
            self.measure.name(),
            self.limit,
            self.counter,
            self.with,
            self.without,
        )
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let rounded = |x: f64| (x * 1e4).round() / 1e4;
        serde_json::json!({
            "work": format!("{}, at most {}", self.attack, self.limit),
            "unit": self.measure.name(),
            "ours": rounded(self.with),
            "peer": rounded(self.without),
            "peer_name": format!("without {}", self.counter),
            // Of nothing, over the last digit that is shown.
            "ratio": rounded(self.without / self.with.max(1e-4)),
            "command": "cargo xtask bench attacks",
        })
    }
}

/// The head of the table.
pub(crate) const HEAD: &str = "\
| attack | measure | at most | counter-measure | with | without | |
|---|---|---|---|---|---|---|
";
