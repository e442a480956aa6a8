//! Addresses that a pod gets and loses while it runs.

use std::net::SocketAddr;

use mesh_tests::{LIMIT, Mesh, eventually, identity, plain, protocol::Dial};

#[test]
fn an_address_that_is_added_to_a_running_pod_is_in_the_mesh_until_it_is_removed() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let [a, b, c, number] = near.v4().octets();
    let other = SocketAddr::from(([a, b, c, 200], 80));
    let node = mesh.node("node-a");
    node.system().namespace.ip(&format!("route add {}/32 dev pod{number}", other.ip()));
    let shown = || -> Result<Vec<String>, String> {
        let pods = node.admin().list().map_err(|status| status.to_string())?;
        Ok(pods.into_iter().find(|pod| pod.name == "near").map(|pod| pod.addresses).unwrap_or_default())
    };
    let refuses = |what: &str, dial: &dyn Fn() -> mesh_tests::dial::Dialled| {
        eventually(what, LIMIT, || match dial() {
            dialled if dialled.was_refused() => Ok(()),
            dialled => Err(format!("{:?}", dialled.report())),
        });
    };

    // Somebody else's first: it does not count, whoever shows it.
    near.place().namespace.ip(&format!("addr add {}/32 dev eth0\naddr add {}/32 dev eth0", far.v4(), other.ip()));
    web.reaches(other);
    assert_eq!(
        shown().expect("the agent lists pods").iter().filter(|address| **address == far.v4().to_string()).count(),
        0
    );
    web.dial(&far).is_answered();
    let from_outside = || mesh.stranger().dial(Dial { send: "ping\n".to_owned(), ..plain(other) });
    from_outside().is_answered();

    mesh.apply(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: default, name: strict}\n\
         spec:\n  mtls: {mode: STRICT}\n",
    );
    refuses("a STRICT pod refuses plaintext at its other address", &from_outside);
    web.reaches(other);
    mesh.policy("only-api").on(&near).allow(identity("ns/default/sa/api"));
    refuses("the pod's policy holds at its other address", &|| web.dial_at(other));
    mesh.remove_policy("only-api");
    web.reaches(other);

    near.place().namespace.ip(&format!("addr del {}/32 dev eth0", other.ip()));
    eventually("the address is forgotten", LIMIT, || match shown()? {
        addresses if addresses.contains(&other.ip().to_string()) => Err(format!("{addresses:?}")),
        _ => Ok(()),
    });
    web.dial_at(other).is_refused();
}
