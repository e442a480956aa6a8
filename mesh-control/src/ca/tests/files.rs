//! Where the keys come from: made once, or plugged in; and what is no authority.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rcgen::{BasicConstraints, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::{WEB, csr, der, lifetime, parsed};
use crate::{
    ca::{
        authority::{Authority, root_params},
        files,
        identity::Identity,
        request,
    },
    testing::TempFolder,
};

/// What is done to a folder, and what its refusal says then.
type Case<'a, F> = (&'a dyn Fn(&F), &'a str);

#[test]
fn a_root_is_made_once_and_kept_to_its_owner() {
    let folder = TempFolder::new();
    let first = files::load(&folder.0, None).expect("made");
    let mode = |name: &str| fs::metadata(folder.0.join(name)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("ca-key.pem"), mode("root-cert.pem")), (0o600, 0o644));
    let second = files::load(&folder.0, None).expect("loaded");
    assert_eq!(first.roots, second.roots);
    assert_eq!(fs::read_to_string(folder.0.join("root-cert.pem")).expect("there"), first.roots[0]);
}

#[test]
fn half_a_root_an_open_key_or_a_strange_one_is_no_authority() {
    let refusal = |change: &dyn Fn(&Path)| {
        let folder = TempFolder::new();
        files::load(&folder.0, None).expect("made");
        change(&folder.0);
        files::load(&folder.0, None).err().expect("refused").to_string()
    };
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key").serialize_pem();
    let cases: [Case<Path>; 5] = [
        (&|folder| fs::remove_file(folder.join("ca-key.pem")).expect("removed"), "root-cert.pem is there but"),
        (&|folder| fs::remove_file(folder.join("root-cert.pem")).expect("removed"), "ca-key.pem is there but"),
        (
            &|folder| fs::set_permissions(folder.join("ca-key.pem"), fs::Permissions::from_mode(0o640)).expect("mode"),
            "chmod 600",
        ),
        (&|folder| fs::write(folder.join("ca-key.pem"), &other).expect("written"), "does not belong to ca-key.pem"),
        (&|folder| fs::write(folder.join("root-cert.pem"), "x").expect("written"), "holds no certificate"),
    ];
    for (change, expected) in cases {
        let message = refusal(change);
        assert!(message.contains(expected), "{message}");
    }
}

/// Root, intermediate and its key, as an operator plugs them in.
fn plugged(folder: &TempFolder, is_ca: bool) -> (String, String) {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let root_key = key();
    let above = root_params(Duration::from_secs(86_400));
    let root = above.self_signed(&root_key).expect("a root").pem();
    let mut params = root_params(Duration::from_secs(3_600));
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Constrained(0)) } else { IsCa::ExplicitNoCa };
    let intermediate_key = key();
    let intermediate = params.signed_by(&intermediate_key, &Issuer::new(above, root_key)).expect("signed").pem();
    folder.write("ca-cert.pem", &intermediate);
    folder.write("ca-key.pem", &intermediate_key.serialize_pem());
    fs::set_permissions(folder.0.join("ca-key.pem"), fs::Permissions::from_mode(0o600)).expect("mode");
    folder.write("root-cert.pem", &root);
    folder.write("cert-chain.pem", &format!("{intermediate}{root}"));
    (intermediate, root)
}

#[test]
fn a_plugged_in_intermediate_signs_and_its_chain_is_sent_in_order() {
    let (state, folder) = (TempFolder::new(), TempFolder::new());
    let (intermediate, root) = plugged(&folder, true);
    let authority =
        Authority::new(files::load(&state.0, Some(&folder.0)).expect("loaded"), Duration::from_secs(86_400));
    let identity = Identity::parse(WEB).expect("an identity");
    let key = request::public_key(&csr(WEB), &identity).expect("good");
    let chain = authority.sign_workload(&identity, &key, Duration::from_secs(86_400)).expect("signed");
    assert_eq!(chain.len(), 3, "leaf, intermediate, root, each once");
    let chain: Vec<_> = chain.iter().map(|pem| der(pem)).collect();
    assert_eq!((&chain[1], &chain[2]), (&der(&intermediate), &der(&root)));
    let (leaf, above) = (parsed(&chain[0]), parsed(&chain[1]));
    leaf.verify_signature(Some(above.public_key())).expect("signed by the intermediate");
    assert!(lifetime(&leaf) <= Duration::from_secs(3_600), "never longer than what signed it");
    assert!(state.0.join("root-cert.pem").exists() && !state.0.join("ca-key.pem").exists());
}

#[test]
fn a_plugged_in_folder_that_does_not_hold_together_is_refused() {
    let refusal = |change: &dyn Fn(&TempFolder)| {
        let (state, folder) = (TempFolder::new(), TempFolder::new());
        plugged(&folder, true);
        change(&folder);
        files::load(&state.0, Some(&folder.0)).err().expect("refused").to_string()
    };
    let strange = files::load(&TempFolder::new().0, None).expect("made").roots.concat();
    let open = |folder: &TempFolder| {
        fs::set_permissions(folder.0.join("ca-key.pem"), fs::Permissions::from_mode(0o644)).expect("mode");
    };
    let cases: [Case<TempFolder>; 5] = [
        (&open, "chmod 600"),
        (&|folder| folder.write("root-cert.pem", &strange), "does not lead from ca-cert.pem to root-cert.pem"),
        (&|folder| drop(plugged(folder, false)), "is not a CA certificate"),
        (&|folder| folder.write("ca-cert.pem", &strange), "does not belong to ca-key.pem"),
        (&|folder| folder.remove("root-cert.pem"), "root-cert.pem"),
    ];
    for (change, expected) in cases {
        let message = refusal(change);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}
