//! What is told of an object: the condition of ours beside others', and the event for one that is refused. Words only;
//! nothing is sent from here.

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::{
    kinds::Kind,
    store::{Handle, Seen},
};
use crate::{objects::metadata::Name, source::problem::Problem};

/// Type of the condition.
pub const CONDITION: &str = "mesh.dev/Accepted";
/// Who reports events.
const REPORTER: &str = "mesh.dev/mesh-control";
/// Longest text of an event, in bytes, by the API server's validation.
const LONGEST: usize = 1_000;

/// The conditions that are to be applied, when those that the object has do not say it already. Where the list belongs to
/// whoever wrote last, others' entries are among them.
pub fn conditions(seen: &Seen, handle: &Handle) -> Option<Vec<Value>> {
    let is_ours = |condition: &&Value| condition["type"] == CONDITION;
    let old = handle.conditions.iter().find(is_ours);
    let (status, reason, message) = match seen.problems.is_empty() {
        true => ("True", "Accepted", "in force on every node".to_owned()),
        false => (
            "False",
            "Refused",
            format!("{}. Everything that it selects is denied until it is mended", text(&seen.problems)),
        ),
    };
    let mut new = json!({
        "type": CONDITION,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": handle.generation,
    });
    let is_said = |old: &&Value| {
        ["status", "reason", "message"].iter().all(|field| old[*field] == new[*field])
            && number(&old["observedGeneration"]) == Some(handle.generation)
    };
    if old.filter(is_said).is_some() {
        return None;
    }
    let since = old.filter(|old| old["status"] == new["status"]).and_then(|old| old["lastTransitionTime"].as_str());
    new["lastTransitionTime"] = since.map_or_else(|| now().into(), Into::into);
    let others = handle.conditions.iter().filter(|condition| !is_ours(condition) && !handle.has_shared_conditions);
    Some(others.cloned().chain([new]).collect())
}

/// Istio's definitions let the number be a text too.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The event for a refused object. Its name is the same for the same word about the same object, so that it is told once
/// by however many replicas.
pub fn event(kind: &Kind, name: &Name, seen: &Seen, handle: &Handle, replica: &str) -> Event {
    let note = text(&seen.problems);
    let namespace = if name.namespace.is_empty() { "default" } else { &name.namespace };
    let hash = digest(&SHA256, format!("{} {} {note}", handle.uid, handle.generation).as_bytes());
    let tail: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let head: String = name.name.chars().take(200).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{tail}", head.trim_end_matches(['.', '-']))),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some("Read".to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(note),
        reason: Some("Refused".to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(handle.api_version.clone()),
            kind: Some(kind.name.to_owned()),
            name: Some(name.name.clone()),
            namespace: Some(name.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            resource_version: Some(handle.resource_version.clone()),
            uid: Some(handle.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(replica.chars().take(128).collect()),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// All problems on one line, as many as fit.
fn text(problems: &[Problem]) -> String {
    let mut text = String::new();
    for (index, problem) in problems.iter().enumerate() {
        let next = format!("{}{problem}", if index == 0 { "" } else { "; " });
        if text.len() + next.len() > LONGEST {
            let more = format!("{}{} more", if index == 0 { "" } else { "; " }, problems.len() - index);
            return text + &more;
        }
        text += &next;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(problems: &[&str]) -> Seen {
        let problem =
            |reason: &&str| Problem { at: Default::default(), field: "spec.x".into(), reason: (*reason).into() };
        Seen { object: None, problems: problems.iter().map(problem).collect(), unknown: Vec::new(), handle: None }
    }

    #[test]
    fn a_condition_is_written_once_and_its_time_stays_while_it_says_the_same() {
        let mut handle = Handle { generation: 1, ..Handle::default() };
        let first = conditions(&seen(&[]), &handle).expect("nothing is said yet");
        assert_eq!((first.len(), &first[0]["status"], &first[0]["reason"]), (1, &json!("True"), &json!("Accepted")));
        handle.conditions = first.clone();
        assert_eq!(conditions(&seen(&[]), &handle), None);

        handle.conditions[0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        handle.generation = 2;
        let again = conditions(&seen(&[]), &handle).expect("another generation");
        assert_eq!(again[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        let refused = conditions(&seen(&["is wrong"]), &handle).expect("another word");
        assert_ne!(refused[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        let message = refused[0]["message"].as_str().expect("a text");
        assert!(message.starts_with("spec.x: is wrong. Everything that it selects is denied"), "{message}");

        handle.conditions[0]["observedGeneration"] = "2".into();
        assert_eq!(conditions(&seen(&[]), &handle), None, "Istio writes the number as a text");
    }

    #[test]
    fn conditions_of_others_stay() {
        let theirs = json!({"type": "ZtunnelAccepted", "status": "True"});
        let mut handle = Handle { conditions: vec![theirs.clone()], ..Handle::default() };
        let whole = conditions(&seen(&[]), &handle).expect("ours is missing");
        assert_eq!((whole.len(), &whole[0]), (2, &theirs), "in a list that has one owner, theirs is written along");
        handle.has_shared_conditions = true;
        let own = conditions(&seen(&[]), &handle).expect("ours is missing");
        assert_eq!(own.len(), 1, "in a list by type, ours alone is ours to write");
    }

    #[test]
    fn an_event_has_one_name_for_one_word_and_never_too_long_a_text() {
        let kind = &super::super::kinds::KINDS[3];
        let name = Name::new("shop", "n".repeat(253));
        let handle = Handle { uid: "u".into(), ..Handle::default() };
        let event = |problems: &[&str]| event(kind, &name, &seen(problems), &handle, "replica");
        assert_eq!(event(&["a"]).metadata.name, event(&["a"]).metadata.name);
        assert_ne!(event(&["a"]).metadata.name, event(&["b"]).metadata.name);
        assert!(event(&["a"]).metadata.name.expect("a name").len() <= 253);
        let long = "x".repeat(400);
        let note = event(&[&long, &long, &long]).note.expect("a text");
        assert!(note.len() <= 1_024 && note.ends_with("; 1 more"), "{note}");
    }
}
