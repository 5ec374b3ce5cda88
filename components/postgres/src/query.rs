//! The query documents of the state query API over `jsonb`, version v1 only.
//!
//! <https://docs.dapr.io/developing-applications/building-blocks/state-management/howto-state-query-api/>
//!
//! Numbers compare as numbers and expired rows are not found; a filter for equality also
//! matches a value whose text is the same, as it does with Dapr.

use async_trait::async_trait;
use mecha_components_api::{Error, Item, Metadata, QueryPage, QueryState, Result};
use serde_json::Value as Json;

use crate::sql::{Param, Sql};
use crate::state::PgState;
use crate::state_v1::V1;

/// Filters inside of filters.
const DEEPEST: usize = 32;
/// Values and keys in one document.
const MOST_PARAMETERS: usize = 1_000;
/// Rows in one page, whatever the document asks for.
const LARGEST_PAGE: u64 = 10_000;

/// SQL in the making.
#[derive(Debug, Default)]
struct Build {
    text: String,
    values: Vec<Owned>,
}

#[derive(Debug, PartialEq)]
enum Owned {
    Text(String),
    Json(String),
    Path(Vec<String>),
}

impl Build {
    /// Adds a parameter and gives its place.
    fn param(&mut self, value: Owned) -> Result<String> {
        if self.values.len() >= MOST_PARAMETERS {
            return Err(Error::invalid(format!("a query may hold {MOST_PARAMETERS} keys and values at most")));
        }
        self.values.push(value);
        Ok(format!("${}", self.values.len()))
    }

    /// The JSON value that `key` names: `person.org`.
    fn field(&mut self, key: &str) -> Result<String> {
        if key.is_empty() || key.contains('\0') {
            return Err(Error::invalid("a query names an empty key"));
        }
        let place = self.param(Owned::Path(key.split('.').map(str::to_owned).collect()))?;
        Ok(format!("(value #> {place})"))
    }

    /// True where the field equals `value`, null where there is no field.
    fn equals(&mut self, key: &str, value: &Json) -> Result<String> {
        let text = match value {
            Json::String(text) if text.contains('\0') => return Err(nul()),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        let json = value.to_string();
        let (field, text, json) = (self.field(key)?, self.param(Owned::Text(text))?, self.param(Owned::Json(json))?);
        Ok(format!("({field} #>> '{{}}' = {text} OR {field} = {json})"))
    }

    fn filter(&mut self, filter: &Json, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(Error::invalid(format!("filters may be nested {DEEPEST} deep at most")));
        }
        let (operator, operand) = match filter.as_object().map(|o| (o.len(), o.iter().next())) {
            Some((1, Some((operator, operand)))) => (operator.as_str(), operand),
            _ => return Err(Error::invalid("a filter must be an object with one operator")),
        };
        if let "AND" | "OR" = operator {
            let filters = operand.as_array().filter(|f| !f.is_empty());
            let filters = filters.ok_or_else(|| Error::invalid(format!("{operator} takes a list of filters")))?;
            self.text.push('(');
            for (i, filter) in filters.iter().enumerate() {
                if i > 0 {
                    self.text.push_str(if operator == "AND" { " AND " } else { " OR " });
                }
                self.filter(filter, depth + 1)?;
            }
            self.text.push(')');
            return Ok(());
        }
        let (key, value) = match operand.as_object().map(|o| (o.len(), o.iter().next())) {
            Some((1, Some((key, value)))) => (key.as_str(), value),
            _ => return Err(Error::invalid(format!("{operator} takes an object with one key"))),
        };
        let condition = match operator {
            "EQ" => self.equals(key, value)?,
            "NEQ" => format!("NOT {}", self.equals(key, value)?),
            "GT" | "GTE" | "LT" | "LTE" => {
                if !value.is_number() {
                    return Err(Error::invalid(format!("{operator} of '{key}' takes a number")));
                }
                let sign = match operator {
                    "GT" => ">",
                    "GTE" => ">=",
                    "LT" => "<",
                    _ => "<=",
                };
                let (field, json) = (self.field(key)?, self.param(Owned::Json(value.to_string()))?);
                format!("(jsonb_typeof({field}) = 'number' AND {field} {sign} {json})")
            }
            "IN" => {
                let values = value.as_array().filter(|v| !v.is_empty());
                let values = values.ok_or_else(|| Error::invalid(format!("empty IN operator for key '{key}'")))?;
                let any: Vec<String> = values.iter().map(|v| self.equals(key, v)).collect::<Result<_>>()?;
                format!("({})", any.join(" OR "))
            }
            other => return Err(Error::invalid(format!("unsupported filter '{other}'"))),
        };
        self.text.push_str(&condition);
        Ok(())
    }

    fn sort(&mut self, sort: &Json) -> Result<()> {
        let wrong = || Error::invalid("'sort' takes a list of objects with 'key' and 'order' (ASC or DESC)");
        self.text.push_str(" ORDER BY ");
        for item in sort.as_array().ok_or_else(wrong)? {
            let key = item.get("key").and_then(Json::as_str).ok_or_else(wrong)?;
            let order = match item.get("order").and_then(Json::as_str).unwrap_or("") {
                "" | "ASC" => "ASC",
                "DESC" => "DESC",
                _ => return Err(wrong()),
            };
            let field = self.field(key)?;
            self.text.push_str(&format!("{field} {order}, "));
        }
        // Pages neither overlap nor leave anything out.
        self.text.push_str("row_id");
        Ok(())
    }
}

fn nul() -> Error {
    Error::invalid("a query value holds the character NUL, which PostgreSQL cannot hold")
}

/// How many rows to skip and to show.
fn page(query: &Json) -> Result<(u64, u64)> {
    let Some(page) = query.get("page").filter(|p| !p.is_null()) else { return Ok((0, LARGEST_PAGE)) };
    let limit = match page.get("limit") {
        None | Some(Json::Null) => 0,
        Some(limit) => limit.as_u64().ok_or_else(|| Error::invalid("'page.limit' must be a number"))?,
    };
    let skip = match page.get("token").and_then(Json::as_str).unwrap_or("") {
        "" => 0,
        token => token.parse::<u32>().map_err(|_| Error::invalid("'page.token' is not one of this store"))?.into(),
    };
    Ok((skip, if limit == 0 { LARGEST_PAGE } else { limit.min(LARGEST_PAGE) }))
}

fn build(table: &str, query: &Json) -> Result<(Build, u64, u64)> {
    let (skip, limit) = page(query)?;
    let mut build = Build {
        text: format!(
            "SELECT value::text, isbinary, xmin::text, (extract(epoch FROM expiredate) * 1000000)::bigint, key \
             FROM {table} WHERE (expiredate IS NULL OR expiredate > now())"
        ),
        values: Vec::new(),
    };
    match query.get("filter") {
        None | Some(Json::Null) => {}
        Some(Json::Object(none)) if none.is_empty() => {}
        Some(filter) => {
            build.text.push_str(" AND ");
            build.filter(filter, 0)?;
        }
    }
    build.sort(query.get("sort").filter(|s| !s.is_null()).unwrap_or(&Json::Array(Vec::new())))?;
    build.text.push_str(&format!(" LIMIT {} OFFSET {skip}", limit + 1));
    Ok((build, skip, limit))
}

#[async_trait]
impl QueryState for PgState<V1> {
    /// The token is the number of rows before the next page.
    async fn query(&self, query: &Json, _metadata: &Metadata) -> Result<QueryPage> {
        let (build, skip, limit) = build(&self.table, query)?;
        let paths: Vec<Vec<&str>> = build
            .values
            .iter()
            .map(|v| match v {
                Owned::Path(parts) => parts.iter().map(String::as_str).collect(),
                Owned::Text(_) | Owned::Json(_) => Vec::new(),
            })
            .collect();
        let params: Vec<Param<'_>> = build
            .values
            .iter()
            .zip(&paths)
            .map(|(value, path)| match value {
                Owned::Text(text) => Param::Text(text),
                Owned::Json(json) => Param::Json(json.as_bytes()),
                Owned::Path(_) => Param::Texts(path),
            })
            .collect();
        let rows = self.client.read("query", &Sql::once(build.text), &params).await?;
        let mut page = QueryPage::default();
        for row in rows.iter() {
            if page.items.len() as u64 == limit {
                page.token = (skip + limit).to_string();
                break;
            }
            let item: Item = Self::item(row)?;
            page.items.push((row.needed(4)?.to_owned(), item));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn values_and_keys_are_parameters() {
        let query = json!({
            "filter": {"AND": [{"EQ": {"a.b": "x'y"}}, {"OR": [{"GT": {"n": 5}}, {"IN": {"s": ["p", 1]}}]}]},
            "sort": [{"key": "a'b", "order": "DESC"}],
            "page": {"limit": 2, "token": "4"}
        });
        let (build, skip, limit) = build("state", &query).unwrap();
        assert_eq!((skip, limit), (4, 2));
        assert!(!build.text.contains("x'y") && !build.text.contains("a'b"), "{}", build.text);
        assert!(build.text.ends_with("DESC, row_id LIMIT 3 OFFSET 4"), "{}", build.text);
        assert_eq!(build.values[0], Owned::Path(vec!["a".into(), "b".into()]));
        assert_eq!(build.values[1], Owned::Text("x'y".into()));
    }

    #[test]
    fn mistakes_are_told() {
        for (query, part) in [
            (json!({"filter": {"EQ": {"a": 1, "b": 2}}}), "one key"),
            (json!({"filter": {"LIKE": {"a": 1}}}), "unsupported filter"),
            (json!({"filter": {"GT": {"a": "text"}}}), "takes a number"),
            (json!({"filter": {"IN": {"a": []}}}), "empty IN"),
            (json!({"filter": {"AND": {}}}), "list of filters"),
            (json!({"sort": [{"key": "a", "order": "random"}]}), "ASC or DESC"),
            (json!({"page": {"token": "x"}}), "page.token"),
        ] {
            let message = build("state", &query).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let mut deep = json!({"EQ": {"a": 1}});
        for _ in 0..100 {
            deep = json!({ "AND": [deep] });
        }
        assert!(build("state", &json!({ "filter": deep })).is_err());
    }

    proptest! {
        #[test]
        fn any_document_is_built_or_refused(text in "\\{\"(filter|sort|page)\":[\\[\\]{}\":,a-zEQANDIOR0-9]{0,60}\\}") {
            if let Ok(query) = serde_json::from_str::<Json>(&text) {
                let _ = build("state", &query);
            }
        }
    }
}
