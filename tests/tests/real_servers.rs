//! Servers of Debian with their own clients, unchanged, across nodes and on one. What the servers log about their callers
//! is what they would log without a mesh, and meanwhile a
//! capture of the link sees nothing but tunnels.

use std::{fs, path::Path, time::Duration};

use mesh_tests::{
    App, LIMIT, Mesh, eventually,
    process::{Process, printed},
    protocol::End,
};

/// A caller, and where the server under test runs: its own node, and the other.
const PLACES: [(&str, &str); 2] = [("near", "node-a"), ("far", "node-b")];

/// Starts a server and waits until its pod can connect to it on loopback, then waits for the mesh.
fn serve(mesh: &Mesh, app: &App, port: u16, words: &[&str]) -> Process {
    let mut process = app.start(words, &format!("{}-server.log", app.name()));
    eventually(&format!("{} listens on {port}", words[0]), LIMIT, || {
        if let Some(status) = process.ended() {
            panic!("{words:?} ended, {status}: {}", process.log());
        }
        let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string());
        app.place().namespace.inside(connect)
    });
    mesh.settle();
    process
}

fn nginx(mesh: &Mesh, app: &App) -> Process {
    let root = app.file("www");
    fs::create_dir_all(root.join("upload")).expect("a directory of the mesh");
    let shown = |path: &Path| path.display().to_string();
    let configuration = format!(
        "user root; worker_processes 1; daemon off; pid {pid}; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  log_format peer '$remote_addr $request_method $uri $status $connection_requests';\n  \
         access_log {log} peer;\n  client_max_body_size 0;\n  client_body_temp_path {temporary};\n  \
         server {{ listen 8080; listen [::]:8080; root {root};\n    location /upload/ {{ dav_methods PUT; }}\n  }}\n}}\n",
        pid = shown(&app.file("nginx.pid")),
        log = shown(&app.file("access.log")),
        temporary = shown(&app.file("temporary")),
        root = shown(&root),
    );
    let file = app.file("nginx.conf");
    fs::write(&file, configuration).expect("a file of the mesh");
    serve(mesh, app, 8080, &["nginx", "-c", &shown(&file)])
}

#[test]
fn nginx_serves_a_big_file_takes_an_upload_and_keeps_connections_alive() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let capture = mesh.link().capture(&[]);
    let big = web.file("big");
    let mut bytes = vec![0; 100 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    fs::write(&big, &bytes).expect("the slot's tmpfs has room");
    for (name, node) in PLACES {
        let app = mesh.app(name).on(node);
        let _server = nginx(&mesh, &app);
        fs::hard_link(&big, app.file("www").join("big")).expect("one file system");
        let back = web.file("back").display().to_string();
        let source = big.display().to_string();
        for host in [app.v4().to_string(), format!("[{}]", app.v6())] {
            let url = format!("http://{host}:8080");
            let get = ["curl", "-sSf", "--globoff", "-o", &back, "-w", "%{remote_ip}", &format!("{url}/big")];
            assert_eq!(printed(&web.run(&get)), host.trim_matches(['[', ']']));
            assert!(fs::read(&back).expect("curl wrote it") == bytes, "the download differs");

            printed(&web.run(&["curl", "-sSf", "--globoff", "-T", &source, &format!("{url}/upload/{}", host.len())]));
            let uploaded = fs::read(app.file("www").join(format!("upload/{}", host.len()))).expect("nginx wrote it");
            assert!(uploaded == bytes, "the upload differs");
        }
        // By a service: the client's getpeername answers what it dialled, not the pod behind it.
        let service = mesh.service(&format!("{name}-www")).port(80, 8080).selecting("app", name);
        let get = ["curl", "-sSf", "-o", &back, "-w", "%{remote_ip}:%{remote_port}"];
        let dialled = service.at(80).to_string();
        assert_eq!(printed(&web.run(&[&get[..], &[&format!("http://{dialled}/big")]].concat())), dialled);
        assert!(fs::read(&back).expect("curl wrote it") == bytes, "the download by the service differs");

        let url = format!("http://{}:8080/big", app.v4());
        let range = ["-r", "0-9", "-o", "/dev/null"];
        let mut words = vec!["curl", "-sSf", "-w", "%{num_connects}\n"];
        words.extend([&range[..], &[&url], &range, &[&url], &range, &[&url]].concat());
        assert_eq!(printed(&web.run(&words)), "1\n0\n0\n", "three requests on one connection");

        let log = fs::read_to_string(app.file("access.log")).expect("nginx's log");
        let [v4, v6] = web.addresses().map(|address| address.to_string());
        let mut peers = log.lines().filter_map(|line| line.split(' ').next());
        assert!(peers.all(|peer| peer == v4 || peer == v6), "nginx saw {log}");
        for (peer, length) in [(&v4, app.v4().to_string().len()), (&v6, app.v6().to_string().len() + 2)] {
            assert!(log.contains(&format!("{peer} PUT /upload/{length} 201 ")), "nginx saw {log}");
            assert!(log.contains(&format!("{peer} GET /big 200 ")), "nginx saw {log}");
        }
    }
    capture.shows_only_tunnels(&mesh.addresses());
}

#[test]
fn redis_answers_pipelines_and_pushes_messages() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let capture = mesh.link().capture(&[]);
    for (name, node) in PLACES {
        let app = mesh.app(name).on(node);
        let words = ["redis-server", "--port", "6379", "--bind", "*", "-::*", "--save", "", "--protected-mode", "no"];
        let server = serve(&mesh, &app, 6379, &[&words[..], &["--loglevel", "verbose"]].concat());
        let host = app.v4().to_string();
        let ask = |words: &[&str]| printed(&web.run(&[&["redis-cli", "-h", &host], words].concat()));

        let benchmark = ["redis-benchmark", "-h", &host, "-n", "20000", "-P", "32", "-c", "8", "-q", "-t", "set,incr"];
        printed(&web.run(&benchmark));
        assert_eq!(ask(&["get", "counter:__rand_int__"]).trim(), "20000", "every pipelined INCR was executed once");

        let subscriber = web.start(&["redis-cli", "-h", &host, "subscribe", "news"], &format!("{name}-subscriber.log"));
        eventually("a subscriber", LIMIT, || match ask(&["publish", "news", "it-is-so"]).trim() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        });
        eventually("the message arrives", LIMIT, || {
            if subscriber.log().contains("it-is-so") { Ok(()) } else { Err(subscriber.log()) }
        });
        for to in [app.at(6379), app.at_v6(6379)] {
            let half = web.opens(to);
            half.says("PING\r\n").finishes().hears("+PONG\r\n");
            let end = half.end_within(Duration::from_secs(5));
            assert!(matches!(end, Some((End::Finished, _))), "after its own FIN the client saw {end:?}");
            let seen = format!("Accepted {}:", half.local().ip());
            assert!(server.log().contains(&seen), "redis saw {}", server.log());
        }
        let own = ask(&["client", "info"]);
        assert!(own.contains(&format!(" addr={}:", web.v4())), "redis sees {own}");
        assert!(own.contains(&format!(" laddr={host}:6379 ")), "redis sees {own}");
    }
    capture.shows_only_tunnels(&mesh.addresses());
}

/// Debian's sshd on port 22 with a fresh host key, for whoever has the key in `authorized`.
fn sshd(mesh: &Mesh, app: &App, authorized: &str) -> Process {
    // Debian's sshd wants this directory for its unprivileged half.
    fs::create_dir_all("/run/sshd").expect("root can make it");
    let host_key = app.file("hostkey").display().to_string();
    printed(&app.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &host_key]));
    let keys = format!("AuthorizedKeysFile={authorized}");
    let mut words = vec!["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", "22", "-h", &host_key];
    for option in ["PidFile=none", "UsePAM=no", "LogLevel=VERBOSE", "StrictModes=no", "PermitRootLogin=yes", &keys] {
        words.extend(["-o", option]);
    }
    serve(mesh, app, 22, &words)
}

#[test]
fn a_secure_shell_server_speaks_first_and_a_session_carries_what_is_piped_through_it() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let capture = mesh.link().capture(&[]);
    let shown = |path: std::path::PathBuf| path.display().to_string();
    let (key, sent, back) = (shown(web.file("key")), shown(web.file("sent")), shown(web.file("back")));
    printed(&web.place().run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key]));
    let mut bytes = vec![0; 8 << 20];
    fastrand::Rng::with_seed(2).fill(&mut bytes);
    fs::write(&sent, &bytes).expect("the slot's tmpfs has room");
    for (name, node) in PLACES {
        let app = mesh.app(name).on(node);
        let server = sshd(&mesh, &app, &format!("{key}.pub"));
        let public = fs::read_to_string(app.file("hostkey.pub")).expect("ssh-keygen wrote it");
        let (kind, public) = public.trim().split_once(' ').expect("a public key");
        let public = public.split(' ').next().expect("a public key");
        for address in app.addresses() {
            let host = address.to_string();
            // Only the key that this very server has is accepted: it was reached, and nobody in between.
            let known = shown(web.file("known_hosts"));
            fs::write(&known, format!("{host} {kind} {public}\n")).expect("the slot's tmpfs has room");
            let options = format!(
                "-F /dev/null -i {key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes -o BatchMode=yes"
            );
            let ends = printed(&web.run(&["sh", "-c", &format!("ssh {options} root@{host} 'echo $SSH_CONNECTION'")]));
            let ends: Vec<&str> = ends.trim().split(' ').collect();
            let own = web.addresses().into_iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let own = own.expect("one of each family").to_string();
            assert_eq!((ends[0], ends[2], ends[3]), (own.as_str(), host.as_str(), "22"), "{ends:?}");

            printed(&web.run(&["sh", "-c", &format!("ssh {options} root@{host} cat < {sent} > {back}")]));
            assert!(fs::read(&back).expect("ssh wrote it") == bytes, "what came back differs");
            let seen = format!("Accepted publickey for root from {own} port");
            assert!(server.log().contains(&seen), "sshd saw {}", server.log());
        }
    }
    capture.shows_only_tunnels(&mesh.addresses());
}

/// Bytes that one side of iperf3 counted, by its own account.
fn counted(side: &serde_json::Value, sum: &str) -> u64 {
    side["end"][sum]["bytes"].as_u64().unwrap_or_else(|| panic!("iperf3 has no {sum}: {side}"))
}

#[test]
fn iperf3_measures_both_ways() {
    const BYTES: u64 = 200 << 20;
    // iperf3 ends a test on another connection: what is on its way then is not counted by who receives. At full speed that
    // is all that the sockets between hold; at a rate that nothing queues for, next to nothing.
    const RATES: [(&str, u64); 2] = [("0", 50), ("400M", 97)];
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let capture = mesh.link().capture(&[]);
    for (name, node) in PLACES {
        let app = mesh.app(name).on(node);
        let _server = serve(&mesh, &app, 5201, &["iperf3", "-s", "-J"]);
        let host = app.v4().to_string();
        for ((rate, percent), is_reverse) in RATES.into_iter().flat_map(|rate| [(rate, false), (rate, true)]) {
            let mut words =
                vec!["iperf3", "-J", "--get-server-output", "-c", &host, "-n", "200M", "-P", "2", "-b", rate];
            words.extend(is_reverse.then_some("-R"));
            let client: serde_json::Value = serde_json::from_str(&printed(&web.run(&words))).expect("iperf3 -J");
            let server = &client["server_output_json"];
            let (sent, received) = (counted(&client, "sum_sent"), counted(&client, "sum_received"));
            // Of each of the two the client has one from the server; the server's own account of it is the same.
            let by_server = if is_reverse { ("sum_sent", sent) } else { ("sum_received", received) };
            assert_eq!(counted(server, by_server.0), by_server.1, "{words:?}");
            assert!(sent >= BYTES && received <= sent, "{received} of {sent} bytes by {words:?}");
            assert!(received * 100 >= sent * percent, "{received} of {sent} bytes by {words:?}");
            let seen = &server["start"]["accepted_connection"]["host"];
            assert_eq!(seen, &web.v4().to_string(), "iperf3 saw another client");
        }
    }
    capture.shows_only_tunnels(&mesh.addresses());
}
