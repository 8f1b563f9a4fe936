//! A headless Chromium in a network namespace without a route to the outside, controlled through the DevTools protocol.
//!
//! The protocol runs over a pair of pipes. A port would need a network, even if only loopback. A client library would contain generated
//! code for the whole protocol, of which these tests need a dozen calls.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAMS: [&str; 3] = ["chromium-headless-shell", "chromium", "google-chrome"];
/// Timeout of one response or event. On a busy machine, a browser takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The browser's program. Without one, a test fails if `CI=true` (as in `cargo xtask test`), and is skipped otherwise.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|directory| PROGRAMS.map(|program| directory.join(program)))
        .find(|program| program.is_file());
    if found.is_none() {
        let missing = "no chromium (cargo xtask setup --for test)";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
        eprintln!("skipped: {missing}");
    }
    found
}

/// A browser with one tab, which is ended on drop.
pub(crate) struct Browser {
    child: Child,
    requests: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    number: u64,
    /// Events between responses, oldest first.
    pub(crate) events: Vec<Value>,
    profile: TempDir,
}

impl Browser {
    pub(crate) fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let namespace = if nix::unistd::geteuid().is_root() {
            "--net"
        } else {
            "--user --map-root-user --net"
        };
        // The browser's end of the protocol is on descriptors 3 and 4.
        let script = format!(r#"exec unshare {namespace} "$@" 3<&0 4>&1 </dev/null >/dev/null"#);
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"])
            .args(["--disable-background-networking", "--disable-sync", "--mute-audio"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(profile.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in answers.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).unwrap();
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            child,
            requests,
            messages,
            session: None,
            number: 0,
            events: Vec::new(),
            profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        // Without this, a tab has no focus that a style could show.
        browser.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
        browser
    }

    /// Sends a request and waits for its response.
    #[expect(clippy::needless_pass_by_value, reason = "what is passed is made for it")]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut request = json!({"id": self.number, "method": method, "params": params});
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        self.requests
            .write_all(&bytes)
            .unwrap_or_else(|error| panic!("{method}: {error}: {}", self.reported()));
        loop {
            let message = self.next(method);
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Waits for an event.
    pub(crate) fn wait(&mut self, event: &str) {
        while !self.events.iter().any(|seen| seen["method"] == event) {
            let message = self.next(event);
            self.events.push(message);
        }
    }

    fn next(&self, awaited: &str) -> Value {
        let begin = Instant::now();
        self.messages
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("{awaited}: {error} after {:?}: {}", begin.elapsed(), self.reported()))
    }

    /// The browser's own log.
    fn reported(&self) -> String {
        fs::read_to_string(self.profile.path().join("stderr")).unwrap_or_default()
    }

    /// Opens a file and waits until it is loaded.
    pub(crate) fn open(&mut self, page: &Path) {
        self.events.clear();
        self.call("Page.navigate", json!({"url": format!("file://{}", page.display())}));
        self.wait("Page.loadEventFired");
    }

    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true}),
        );
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Sets the width in CSS pixels.
    pub(crate) fn resize(&mut self, width: u32, phone: bool) {
        let metrics = json!({"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Emulates a medium (`screen` or `print`) and a color scheme (`light` or `dark`).
    pub(crate) fn emulate(&mut self, media: &str, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({"media": media, "features": features}),
        );
    }

    pub(crate) fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in [if text.is_empty() { "rawKeyDown" } else { "keyDown" }, "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "text": if kind == "keyUp" { "" } else { text },
                "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Network requests, errors and dialogs of the page.
    pub(crate) fn noise(&self) -> Vec<&Value> {
        const NOISE: [&str; 6] = [
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.loadingFailed",
            "Network.webSocketCreated",
            "Page.javascriptDialogOpening",
        ];
        let of_page = |event: &&Value| {
            NOISE.iter().any(|noise| event["method"] == **noise)
                || event["method"] == "Network.requestWillBeSent" && event["params"]["type"] != "Document"
        };
        self.events.iter().filter(of_page).collect()
    }

    /// Stores a screenshot for manual inspection.
    pub(crate) fn screenshot(&mut self, name: &str) {
        let shot = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
        keep(name, &shot["data"]);
    }

    /// Prints the page on A4.
    pub(crate) fn print(&mut self, name: &str) -> Vec<u8> {
        let paper = json!({"printBackground": true, "paperWidth": 8.27, "paperHeight": 11.69});
        let printed = self.call("Page.printToPDF", paper);
        keep(name, &printed["data"])
    }
}

fn keep(name: &str, base64: &Value) -> Vec<u8> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64.as_str().unwrap())
        .unwrap();
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), &bytes).unwrap();
    bytes
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser also ends its helper processes. The profile is deleted after its end.
        let _ = self.requests.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) {
            // The pipe closes when the browser ends; events until then are ignored.
            if self.messages.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
