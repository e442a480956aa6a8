//! Servers of Debian with their own clients, unchanged, across nodes and on one. What the servers log about their callers
//! is what they would log without a mesh, and meanwhile a
//! capture of the link sees nothing but tunnels.

use std::{fs, path::Path, process::Output};

use mesh_tests::{App, LIMIT, Mesh, eventually, process::Process};

/// A caller, and where the server under test runs: its own node, and the other.
const PLACES: [(&str, &str); 2] = [("near", "node-a"), ("far", "node-b")];

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

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
            assert_eq!(text(&web.run(&get)), host.trim_matches(['[', ']']));
            assert!(fs::read(&back).expect("curl wrote it") == bytes, "the download differs");

            text(&web.run(&["curl", "-sSf", "--globoff", "-T", &source, &format!("{url}/upload/{}", host.len())]));
            let uploaded = fs::read(app.file("www").join(format!("upload/{}", host.len()))).expect("nginx wrote it");
            assert!(uploaded == bytes, "the upload differs");
        }
        let url = format!("http://{}:8080/big", app.v4());
        let range = ["-r", "0-9", "-o", "/dev/null"];
        let mut words = vec!["curl", "-sSf", "-w", "%{num_connects}\n"];
        words.extend([&range[..], &[&url], &range, &[&url], &range, &[&url]].concat());
        assert_eq!(text(&web.run(&words)), "1\n0\n0\n", "three requests on one connection");

        let log = fs::read_to_string(app.file("access.log")).expect("nginx's log");
        let [v4, v6] = web.addresses().map(|address| address.to_string());
        let peers: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(peers.iter().all(|peer| *peer == v4 || *peer == v6), "nginx saw {log}");
        assert!(peers.contains(&v4.as_str()) && peers.contains(&v6.as_str()), "nginx saw {log}");
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
        let _server = serve(&mesh, &app, 6379, &words);
        let host = app.v4().to_string();
        let ask = |words: &[&str]| text(&web.run(&[&["redis-cli", "-h", &host], words].concat()));

        let benchmark = ["redis-benchmark", "-h", &host, "-n", "20000", "-P", "32", "-c", "8", "-q", "-t", "set,incr"];
        text(&web.run(&benchmark));
        assert_eq!(ask(&["get", "counter:__rand_int__"]).trim(), "20000", "every pipelined INCR was executed once");

        let subscriber = web.start(&["redis-cli", "-h", &host, "subscribe", "news"], &format!("{name}-subscriber.log"));
        eventually("a subscriber", LIMIT, || match ask(&["publish", "news", "it-is-so"]).trim() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        });
        eventually("the message arrives", LIMIT, || {
            if subscriber.log().contains("it-is-so") { Ok(()) } else { Err(subscriber.log()) }
        });
        let own = ask(&["client", "info"]);
        assert!(own.contains(&format!(" addr={}:", web.v4())), "redis sees {own}");
        assert!(own.contains(&format!(" laddr={host}:6379 ")), "redis sees {own}");
    }
    capture.shows_only_tunnels(&mesh.addresses());
}

#[test]
fn a_secure_shell_server_speaks_first() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let capture = mesh.link().capture(&[]);
    // Debian's sshd wants this directory for its unprivileged half.
    fs::create_dir_all("/run/sshd").expect("root can make it");
    for (name, node) in PLACES {
        let app = mesh.app(name).on(node);
        let key = app.file("hostkey").display().to_string();
        text(&app.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key]));
        let options = ["-o", "PidFile=none", "-o", "UsePAM=no", "-o", "LogLevel=VERBOSE", "-p", "22", "-h", &key];
        let server =
            serve(&mesh, &app, 22, &[&["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null"], &options[..]].concat());

        let public = fs::read_to_string(format!("{key}.pub")).expect("ssh-keygen wrote it");
        let public = public.split(' ').nth(1).expect("a public key");
        for host in [app.v4().to_string(), app.v6().to_string()] {
            let scanned = text(&web.run(&["ssh-keyscan", "-T", "10", "-t", "ed25519", &host]));
            assert!(scanned.contains(public), "{host} has another key: {scanned}");
        }
        let seen = format!("Connection from {} port", web.v4());
        assert!(server.log().contains(&seen), "sshd saw {}", server.log());
    }
    capture.shows_only_tunnels(&mesh.addresses());
}

#[test]
fn iperf3_measures_both_ways() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let capture = mesh.link().capture(&[]);
    for (name, node) in PLACES {
        let app = mesh.app(name).on(node);
        let server = serve(&mesh, &app, 5201, &["iperf3", "-s", "--forceflush"]);
        let host = app.v4().to_string();
        for direction in [&[][..], &["-R"]] {
            let words = [&["iperf3", "-J", "-c", &host, "-n", "200M", "-P", "2"], direction].concat();
            let result: serde_json::Value = serde_json::from_str(&text(&web.run(&words))).expect("iperf3 -J");
            let received = result["end"]["sum_received"]["bytes"].as_u64().expect("iperf3's sum");
            // iperf3 stops counting when the sender says so, on another connection: what was on its way then is missing.
            assert!(received >= 120_000_000, "{received} of 200 MB were counted");
        }
        let seen = format!("Accepted connection from {}", web.v4());
        assert!(server.log().contains(&seen), "iperf3 saw {}", server.log());
    }
    capture.shows_only_tunnels(&mesh.addresses());
}
