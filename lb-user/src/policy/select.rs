//! Label selectors: `matchLabels` and `matchExpressions`.

use std::collections::BTreeSet;

use crate::source::endpoints::{Labels, selects};

/// Selects what has all of it; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    pub labels: Labels,
    pub expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    pub key: String,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    In(BTreeSet<String>),
    /// Also who has no such label.
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    pub fn selects(&self, labels: &Labels) -> bool {
        (self.labels.is_empty() || selects(&self.labels, labels)) && self.expressions.iter().all(|e| e.holds(labels))
    }
}

impl Expression {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
