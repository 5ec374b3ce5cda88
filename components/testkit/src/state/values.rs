//! What goes in comes out.

use mecha_components_api::ErrorKind;

use super::{Space, StateCase, StateProfile, any};
use crate::case::{Outcome, check, check_eq, refused, table};

pub(super) const CASES: &[StateCase] = table![Space::new;
    missing_key_is_none: any,
    json_value_round_trips: any,
    every_byte_round_trips: any,
    integers_beyond_2_53_are_exact: any,
    decimals_are_exact: exact,
    member_order_and_spacing_are_kept: exact,
    escapes_are_kept: exact,
    unicode_values_round_trip: any,
    empty_bytes_are_a_value: any,
    empty_json_string_is_a_value: any,
    json_null_is_a_value: any,
    text_that_looks_like_base64_stays: any,
    bytes_that_are_json_stay: any,
    one_mebibyte_round_trips: any,
    a_write_replaces_the_whole_value: any,
    bytes_replace_json_and_back: any,
    strong_writes_are_readable: any,
    delete_removes: any,
    delete_of_absent_key_succeeds: any,
    delete_leaves_neighbours: any,
    a_deleted_key_can_be_written_again: any,
    an_empty_key_is_refused_or_stored: any,
];

fn exact(p: &StateProfile) -> bool {
    p.exact_json
}

async fn round_trip_json(s: &Space, texts: &[&str]) -> Outcome {
    for (i, text) in texts.iter().enumerate() {
        let key = format!("k{i}");
        s.put(&key, text).send().await?;
        check_eq!(s.text(&key).await?.as_deref(), Some(*text), "value {i}");
    }
    Ok(())
}

async fn round_trip_bytes(s: &Space, value: &[u8]) -> Outcome {
    s.put_bytes("k", value).send().await?;
    let Some(item) = s.get("k").await? else { return Err(format!("{} bytes are absent", value.len()).into()) };
    check_eq!(item.value.len(), value.len(), "length");
    check!(item.value == value, "{} bytes came back changed", value.len());
    Ok(())
}

async fn missing_key_is_none(s: Space) -> Outcome {
    check_eq!(s.get("never-written").await?, None, "absent key");
    Ok(())
}

async fn json_value_round_trips(s: Space) -> Outcome {
    round_trip_json(&s, &[r#""text""#, "true", "false", "17", "-3", "{}", "[]"]).await?;
    for text in [r#"{"a":1}"#, "[1,2,3]"] {
        s.put("k", text).send().await?;
        // Stores that do not keep the bytes may set spaces of their own.
        let back = s.text("k").await?.map(|t| t.replace(' ', ""));
        check_eq!(back.as_deref(), Some(text), "value without spaces");
    }
    Ok(())
}

async fn every_byte_round_trips(s: Space) -> Outcome {
    let all: Vec<u8> = (0..=255).collect();
    round_trip_bytes(&s, &all).await
}

async fn integers_beyond_2_53_are_exact(s: Space) -> Outcome {
    round_trip_json(
        &s,
        &["9007199254740993", "18446744073709551615", "-9223372036854775808", "123456789012345678901234567890"],
    )
    .await
}

async fn decimals_are_exact(s: Space) -> Outcome {
    round_trip_json(&s, &["0.10", "1.000", "1e2", "1E400", "-0.0", "3.141592653589793238462643383279"]).await?;
    // Of the last bit of a double, of its largest values, and of those with fewer digits than they are written with.
    let doubles = ["31.245270191439438", "121.48791951161945", "8.988465674311582e307", "5.0142262577893e-311"];
    round_trip_json(&s, &doubles).await
}

async fn member_order_and_spacing_are_kept(s: Space) -> Outcome {
    round_trip_json(&s, &[r#"{"z":1,"a":2,"m":3}"#, "{ \"b\" : [ 1 , 2 ] ,\n\t\"a\" : null }", r#"{"a":1,"a":2}"#])
        .await
}

async fn escapes_are_kept(s: Space) -> Outcome {
    round_trip_json(&s, &[r#""\u00e9\/\n""#, r#""\ud83d\ude00""#, r#""<>&\u0026""#]).await
}

async fn unicode_values_round_trip(s: Space) -> Outcome {
    round_trip_json(&s, &["\"é 漢字 🦀 \u{202e}rtl\"", "\"quote ' and \\\" and ; --\""]).await
}

async fn empty_bytes_are_a_value(s: Space) -> Outcome {
    round_trip_bytes(&s, b"").await
}

async fn empty_json_string_is_a_value(s: Space) -> Outcome {
    round_trip_json(&s, &[r#""""#]).await
}

async fn json_null_is_a_value(s: Space) -> Outcome {
    round_trip_json(&s, &["null"]).await
}

async fn text_that_looks_like_base64_stays(s: Space) -> Outcome {
    round_trip_json(&s, &[r#""dGVzdA==""#]).await?;
    round_trip_bytes(&s, b"dGVzdA==").await
}

async fn bytes_that_are_json_stay(s: Space) -> Outcome {
    round_trip_bytes(&s, b"{ \"a\" :  1 }").await
}

async fn one_mebibyte_round_trips(s: Space) -> Outcome {
    let value: Vec<u8> = (0..1_048_576_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    round_trip_bytes(&s, &value).await
}

async fn a_write_replaces_the_whole_value(s: Space) -> Outcome {
    s.put("k", r#"{"long":"value with many characters"}"#).send().await?;
    s.put("k", "1").send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("1"), "second value");
    Ok(())
}

async fn bytes_replace_json_and_back(s: Space) -> Outcome {
    s.put("k", r#""json""#).send().await?;
    s.put_bytes("k", b"\xff\x00").send().await?;
    let item = s.get("k").await?;
    check_eq!(item.as_ref().map(|i| i.value.as_ref()), Some(&b"\xff\x00"[..]), "bytes over JSON");
    s.put("k", r#""json""#).send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some(r#""json""#), "JSON over bytes");
    Ok(())
}

async fn strong_writes_are_readable(s: Space) -> Outcome {
    // A store without a replica to wait for may refuse; if it accepts, the value is there.
    match s.put("k", "1").strong().send().await {
        Ok(()) => check_eq!(s.text("k").await?.as_deref(), Some("1"), "after a strong write"),
        Err(e) => check!(
            matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Unsupported | ErrorKind::Timeout),
            "strong write: {e}"
        ),
    }
    Ok(())
}

async fn delete_removes(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    s.delete("k", None).await?;
    check_eq!(s.get("k").await?, None, "after the delete");
    Ok(())
}

async fn delete_of_absent_key_succeeds(s: Space) -> Outcome {
    s.delete("never-written", None).await?;
    s.delete("never-written", None).await?;
    Ok(())
}

async fn delete_leaves_neighbours(s: Space) -> Outcome {
    for key in ["k", "k1", "k-", "K"] {
        s.put(key, "1").send().await?;
    }
    s.delete("k", None).await?;
    for key in ["k1", "k-", "K"] {
        check!(s.get(key).await?.is_some(), "{key} went with its neighbour");
    }
    Ok(())
}

async fn a_deleted_key_can_be_written_again(s: Space) -> Outcome {
    s.put("k", "1").send().await?;
    s.delete("k", None).await?;
    s.put("k", "2").first_write().send().await?;
    check_eq!(s.text("k").await?.as_deref(), Some("2"), "new value");
    Ok(())
}

async fn an_empty_key_is_refused_or_stored(s: Space) -> Outcome {
    let nameless = Space { prefix: String::new(), ..s };
    match nameless.get("").await {
        Ok(_) => Ok(()),
        refusal => refused(refusal, &[ErrorKind::InvalidArgument], "get of an empty key"),
    }
}
