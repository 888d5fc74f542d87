//! Headless Chromium, driven through ChromeDriver as WebDriver says (w3.org/TR/webdriver2).

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::request;
use crate::home::TEMP_PREFIX;
use crate::program::{Program, Running};

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Bound on the life of a browser.
const LIFE_LIMIT: Duration = Duration::from_secs(600);

/// A browser with one page. It and its driver are killed when dropped.
#[derive(Debug)]
pub struct Browser {
    running: Running,
    address: SocketAddr,
    session: String,
    _profile: TempDir,
}

/// Answer of WebDriver instead of a result: its error code and message.
#[derive(Debug)]
pub struct Refused(pub String);

impl Browser {
    /// Starts ChromeDriver on a free port, in a process group of its own with the browser.
    ///
    /// # Panics
    /// When one of them is missing or does not start.
    pub fn start() -> Self {
        let found = Command::new("chromedriver").arg("--version").stdout(Stdio::null()).status();
        assert!(
            found.is_ok(),
            "chromedriver is missing: run the tests with ./mayfly test, or install chromium-driver"
        );
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").process_group(0);
        let mut running = Program::new(command).limit(LIFE_LIMIT).start();
        let port: u16 = running.until("its port", |running| {
            let said = running.stdout();
            let (_, rest) = said.split_once("started successfully on port ")?;
            rest.split_once('.')?.0.parse().ok()
        });
        let profile =
            tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir().expect("a temporary folder");
        let folder = format!("--user-data-dir={}", profile.path().display());
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,1000",
            &folder,
        ];
        let mut browser = Self {
            running,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            _profile: profile,
        };
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
        let made = browser.call("POST", "", Some(&wanted)).expect("a browser");
        browser.session = format!("/{}", made["sessionId"].as_str().expect("a session id"));
        browser
    }

    /// Opens an address.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(&self, url: &str) {
        self.call("POST", "/url", Some(&json!({ "url": url }))).expect("the page");
    }

    /// Returns the page's title.
    ///
    /// # Panics
    /// When there is no page.
    pub fn title(&self) -> String {
        self.call("GET", "/title", None).expect("a title").as_str().unwrap_or_default().to_owned()
    }

    /// Runs a script as the body of a function, and returns what it returns.
    ///
    /// # Panics
    /// When it throws.
    pub fn eval(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.call("POST", "/execute/sync", Some(&body))
            .unwrap_or_else(|e| panic!("{script}: {}", e.0))
    }

    /// Finds the first element of a CSS selector.
    pub fn find(&self, selector: &str) -> Option<Element<'_>> {
        let body = json!({ "using": "css selector", "value": selector });
        let found = self.call("POST", "/element", Some(&body)).ok()?;
        Some(Element { browser: self, path: format!("/element/{}", found[ELEMENT].as_str()?) })
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refused> {
        let response =
            request(self.address, method, &format!("/session{}{path}", self.session), None, body);
        let answer: Value =
            serde_json::from_str(&response.body).map_err(|e| Refused(e.to_string()))?;
        let value = answer["value"].clone();
        if response.status == 200 { Ok(value) } else { Err(Refused(value["message"].to_string())) }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.running.pid().cast_signed()), Signal::SIGKILL);
    }
}

/// An element of the page. It may be gone at any time.
#[derive(Debug)]
pub struct Element<'a> {
    browser: &'a Browser,
    path: String,
}

impl Element<'_> {
    /// Returns the text as shown.
    pub fn text(&self) -> Option<String> {
        let text = self.browser.call("GET", &format!("{}/text", self.path), None).ok()?;
        text.as_str().map(str::to_owned)
    }

    /// Returns whether it is shown.
    pub fn is_displayed(&self) -> bool {
        self.browser
            .call("GET", &format!("{}/displayed", self.path), None)
            .is_ok_and(|shown| shown == true)
    }

    /// Clicks it.
    ///
    /// # Panics
    /// When it cannot be clicked.
    pub fn click(&self) {
        self.browser
            .call("POST", &format!("{}/click", self.path), Some(&json!({})))
            .expect("a click");
    }

    /// Types into it.
    ///
    /// # Panics
    /// When it takes no text.
    pub fn type_text(&self, text: &str) {
        let body = json!({ "text": text });
        self.browser.call("POST", &format!("{}/value", self.path), Some(&body)).expect("typing");
    }
}
