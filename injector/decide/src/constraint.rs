use std::borrow::Cow;

use mecha_resources::kinds::{Constraint, DecideReason, Operator};

use crate::chain::Check;

/// Whether an attribute with this value meets the constraint.
pub(crate) fn check(constraint: &Constraint, value: Option<&str>) -> Check<'static> {
    let number = |text: &str| text.trim().parse::<i64>().ok();
    let limit = || constraint.values.first().and_then(|text| number(text));
    match (constraint.operator, value) {
        (Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => Check::Pass,
        (Operator::DoesNotExist, Some(_)) => Check::fail(DecideReason::AttributePresent),
        (_, None) => Check::unknown(DecideReason::AttributeUnknown),
        (Operator::In, Some(value)) if constraint.values.iter().any(|v| v == value) => Check::Pass,
        (Operator::In, Some(_)) => Check::fail(DecideReason::NotIn),
        (Operator::NotIn, Some(value)) if constraint.values.iter().any(|v| v == value) => {
            Check::fail(DecideReason::Excluded)
        }
        (Operator::NotIn, Some(_)) => Check::Pass,
        (Operator::Gt, Some(value)) if number(value).zip(limit()).is_some_and(|(value, limit)| value > limit) => {
            Check::Pass
        }
        (Operator::Lt, Some(value)) if number(value).zip(limit()).is_some_and(|(value, limit)| value < limit) => {
            Check::Pass
        }
        (Operator::Gt | Operator::Lt, Some(_)) => Check::fail(DecideReason::OutOfRange),
    }
}

/// `residency us is not in [eu]`.
pub(crate) fn sentence(constraint: &Constraint, value: Option<&str>) -> String {
    let attribute = &constraint.attribute;
    let Some(value) = value else { return format!("{attribute} is not known") };
    let values = constraint.values.join(", ");
    match constraint.operator {
        Operator::In => format!("{attribute} {value} is not in [{values}]"),
        Operator::NotIn => format!("{attribute} {value} is one of [{values}], which are excluded"),
        Operator::Gt => format!("{attribute} {value} is not above {values}"),
        Operator::Lt => format!("{attribute} {value} is not below {values}"),
        Operator::Exists | Operator::DoesNotExist => format!("{attribute} is {value} and must not be there"),
    }
}

/// `region In [eu-west]`, to name the constraint itself.
pub(crate) fn name(constraint: &Constraint) -> Cow<'_, str> {
    match constraint.operator {
        Operator::Exists | Operator::DoesNotExist => format!("{} {}", constraint.attribute, constraint.operator).into(),
        _ => format!("{} {} [{}]", constraint.attribute, constraint.operator, constraint.values.join(", ")).into(),
    }
}
