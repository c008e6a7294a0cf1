//! Limits that a runtime asks for: `runtimeConfig.bandwidth`, as the `bandwidth` plugin takes them.

use serde_json::Value;

use super::call::config;
use crate::ipam::{Bandwidth, Rate};
use crate::pods::talk::Failure;

const PATH: &str = "runtimeConfig.bandwidth";

pub fn read(said: &Value) -> Result<Bandwidth, Failure> {
    if !said.is_object() {
        let right = "expected bits such as { \"ingressRate\": 10000000, \"ingressBurst\": 2000000 }";
        return Err(config(format!("{PATH}: {said}; {right}")));
    }
    let number = |name: &str| match &said[name] {
        Value::Null => Ok(0),
        value => value.as_u64().ok_or_else(|| config(format!("{PATH}.{name}: {value}; expected a number of bits"))),
    };
    let rate = |way: &str| {
        let (rate, burst) = (format!("{way}Rate"), format!("{way}Burst"));
        match (number(&rate)?, number(&burst)?) {
            (0, 0) => Ok(None),
            (0, _) => Err(config(format!("{PATH}.{rate} is missing; expected bits a second beside {burst}"))),
            (_, 0) => Err(config(format!("{PATH}.{burst} is missing; expected bits beside {rate}"))),
            (rate, burst) => Ok(Some(Rate { rate, burst })),
        }
    };
    Ok(Bandwidth { ingress: rate("ingress")?, egress: rate("egress")? })
}
