//! Tests the HTML report in a real browser: it must show the content of `-o json`, be accessible, and show nothing else.

mod browser;
mod facts;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use browser::Browser;
use serde_json::{Value, json};
use tempfile::TempDir;

const TRACES: [&str; 4] = ["healthy-botocore", "lost-token-pod", "tight-loop", "quota"];

fn traces() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    TRACES.map(|name| directory.join(format!("{name}.ndjson"))).into()
}

/// Many subjects with one cause.
fn forty_pods() -> Vec<PathBuf> {
    let incidents = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/incidents");
    vec![incidents.join("groups-forty-pods-one-hop-limit.ndjson.gz")]
}

fn analyze(format: &str, traces: &[PathBuf]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", format])
        .args(traces)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Opens the page in a browser.
fn opened(traces: &[PathBuf]) -> Option<(Browser, PathBuf, TempDir)> {
    let mut browser = Browser::start(&browser::program()?);
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("report.html");
    fs::write(&page, analyze("html", traces)).unwrap();
    browser.resize(1280, false);
    browser.open(&page);
    Some((browser, page, directory))
}

#[test]
fn the_page_shows_what_json_says() {
    for traces in [traces(), forty_pods()] {
        let Some((mut browser, _, _directory)) = opened(&traces) else {
            return;
        };
        let shown = browser.evaluate(facts::SHOWN);
        let analysis: Value = serde_json::from_slice(&analyze("json", &traces)).unwrap();
        facts::compare(&shown, &analysis);
        assert_eq!(browser.noise(), Vec::<&Value>::new());
    }
}

/// The widest element that extends beyond the right edge without scrolling.
const STICKS_OUT: &str = r"(() => {
    const width = document.documentElement.clientWidth;
    const out = [...document.body.querySelectorAll('*')]
        .filter(e => e.getBoundingClientRect().width > 0 && getComputedStyle(e).position !== 'absolute')
        .filter(e => e.getBoundingClientRect().right > width + 0.5 && !e.closest('.scroll'))
        .map(e => e.outerHTML.slice(0, 120));
    const scrolled = [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'));
    return {width, whole: document.documentElement.scrollWidth, out, scrolled};
})()";

#[test]
fn it_fits_a_phone_and_any_wider_screen() {
    let Some((mut browser, page, _directory)) = opened(&traces()) else {
        return;
    };
    for width in [360, 412, 700, 768, 1024, 1280, 1920] {
        browser.resize(width, width < 600);
        browser.open(&page);
        let seen = browser.evaluate(STICKS_OUT);
        assert_eq!(seen["whole"], seen["width"], "{width}: {seen}");
        assert_eq!(seen["out"], json!([]), "{width}");
        // No horizontal scrolling is needed on a phone, where tables are lists, or on a large screen.
        if !(600..1024).contains(&width) {
            assert_eq!(seen["scrolled"], json!([]), "{width}");
        }
        if [360, 1280].contains(&width) {
            browser.screenshot(&format!("report-{width}.png"));
        }
    }
    assert_eq!(browser.noise(), Vec::<&Value>::new());
}

#[test]
fn it_prints_on_some_pages_of_a4() {
    let Some((mut browser, page, _directory)) = opened(&traces()) else {
        return;
    };
    // The width of A4 minus 1 cm on each side.
    browser.resize(718, false);
    browser.emulate("print", "light");
    browser.open(&page);
    let seen = browser.evaluate(STICKS_OUT);
    assert_eq!(seen["whole"], seen["width"], "{seen}");
    assert_eq!((&seen["out"], &seen["scrolled"]), (&json!([]), &json!([])));
    let hidden = browser.evaluate("getComputedStyle(document.querySelector('nav')).display");
    assert_eq!(hidden, "none");
    let pdf = browser.print("report.pdf");
    assert!(pdf.starts_with(b"%PDF-"));
    let text = String::from_utf8_lossy(&pdf);
    let pages = text.matches("/Type /Page\n").count();
    assert!((2..=8).contains(&pages), "{pages} pages");
}

/// Contrast of each text with its background, by WCAG's formula.
const CONTRASTS: &str = r"(() => {
    const channels = text => text.match(/[\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const colour = channels(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
            if (colour[3] > 0) throw new Error('half transparent: ' + e.outerHTML.slice(0, 80));
        }
        return [255, 255, 255];
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const low = [];
    let least = 21, checked = 0;
    while (texts.nextNode()) {
        const e = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || e.closest('svg')) continue;
        const [a, b] = [luminance(channels(getComputedStyle(e).color)), luminance(behind(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        checked += 1;
        least = Math.min(least, ratio);
        if (ratio < 4.5) low.push([ratio, e.outerHTML.slice(0, 100)]);
    }
    const shapes = ['v2', 'token', 'v1', 'other', 'failed'].map(name => {
        const swatch = document.querySelector('.legend .' + name);
        const [a, b] = [luminance(channels(getComputedStyle(swatch).backgroundColor)), luminance(channels(getComputedStyle(document.querySelector('.plot')).backgroundColor))];
        return [name, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
    const style = getComputedStyle(document.body);
    return {checked, least, low, shapes, colours: [style.color, style.backgroundColor]};
})()";

#[test]
fn it_can_be_read_in_the_light_and_in_the_dark() {
    let Some((mut browser, page, _directory)) = opened(&traces()) else {
        return;
    };
    let mut colours = BTreeSet::new();
    for (media, scheme) in [("screen", "light"), ("screen", "dark"), ("print", "dark")] {
        browser.emulate(media, scheme);
        browser.open(&page);
        let seen = browser.evaluate(CONTRASTS);
        assert!(seen["checked"].as_u64().unwrap() > 100, "{seen}");
        assert_eq!(seen["low"], json!([]), "{media}, {scheme}: {}", seen["least"]);
        // For graphics, WCAG requires 3.
        for shape in seen["shapes"].as_array().unwrap() {
            assert!(shape[1].as_f64().unwrap() >= 3.0, "{media}, {scheme}: {shape}");
        }
        colours.insert((media, seen["colours"].to_string()));
        if media == "screen" {
            browser.screenshot(&format!("report-{scheme}.png"));
        }
    }
    // Light and dark colors differ, and the background in print is white.
    assert_eq!(colours.len(), 3, "{colours:?}");
    assert!(
        colours
            .iter()
            .any(|(media, colours)| *media == "print" && colours.contains("rgb(255, 255, 255)"))
    );
}

const FOCUSABLE: &str =
    "[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex=\"0\"]')]";
const FOCUSED: &str = r"(() => {
    const e = document.activeElement;
    const box = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    return {index: FOCUSABLE.indexOf(e), name: e.outerHTML.slice(0, 80), outline: style.outlineStyle + ' ' + style.outlineWidth,
        seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.left >= 0 && box.left < innerWidth};
})()";

#[test]
fn every_control_is_reached_by_the_tab_key_and_shows_it() {
    let Some((mut browser, _, _directory)) = opened(&traces()) else {
        return;
    };
    let focused = FOCUSED.replace("FOCUSABLE", FOCUSABLE);
    let controls = browser.evaluate(&format!("{FOCUSABLE}.length")).as_u64().unwrap();
    assert!(controls > 12, "{controls}");
    for wanted in 0..controls {
        browser.press("Tab", 9);
        let at = browser.evaluate(&focused);
        assert_eq!(at["index"], wanted, "{at}");
        assert_eq!(at["outline"], "solid 3px", "{at}");
        assert_eq!(at["seen"], true, "{at}");
    }
    // The first link skips the navigation.
    browser.evaluate("document.activeElement.blur(), scrollTo(0, 0), document.querySelector('.skip').focus()");
    browser.press("Enter", 13);
    assert_eq!(browser.evaluate("location.hash"), "#findings");
    assert_eq!(browser.evaluate("document.activeElement.id"), "findings");
}

#[test]
fn what_a_process_calls_itself_stays_text() {
    const HOSTILE: &str = r#"</title></style></svg><script>pwned=1</script><img src=x onerror=pwned=1><svg/onload=pwned=1>\" onfocus=pwned=1 autofocus x='&#39;{{7*7}}javascript:pwned=1"#;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hostile.ndjson");
    let text = ["lost-token-pod", "tight-loop"].map(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/traces/{name}.ndjson"));
        fs::read_to_string(path).unwrap()
    });
    let mut hostile = text.concat();
    let names = [
        "instance-id",
        "curl",
        "python3",
        "Boto3/",
        "payments",
        "api-7c9d8b6f5d-x2x4z",
        "app-role",
        "node-1",
        "eth0",
        "GET",
    ];
    for name in names {
        hostile = hostile.replace(name, &format!("{name}{HOSTILE}"));
    }
    fs::write(&path, hostile).unwrap();
    let Some((mut browser, _, _directory)) = opened(&[path]) else {
        return;
    };
    assert_eq!(browser.evaluate("typeof pwned"), "undefined");
    assert_eq!(browser.noise(), Vec::<&Value>::new());
    let strange = r"[...document.querySelectorAll('*')].filter(e => ['SCRIPT', 'IMG', 'IFRAME', 'OBJECT', 'LINK', 'BASE', 'FORM'].includes(e.tagName.toUpperCase())
        || [...e.attributes].some(a => a.name.startsWith('on') || a.name === 'autofocus' || /^\s*javascript:/i.test(a.value))).map(e => e.outerHTML.slice(0, 200))";
    assert_eq!(browser.evaluate(strange), json!([]));
    // The name appears as text.
    let page = browser.evaluate("document.body.innerText");
    for name in ["payments", "instance-id", "Boto3/", "node-1"] {
        assert!(
            page.as_str().unwrap().contains(&format!("{name}</title></style>")),
            "{name}"
        );
    }
    assert_eq!(browser.evaluate("document.querySelectorAll('h2').length"), 8);
    browser.resize(360, true);
    let seen = browser.evaluate(STICKS_OUT);
    assert_eq!(seen["whole"], seen["width"], "{seen}");

    // If a script were injected, it must not run or send anything.
    let injected = r"new Promise(resolve => {
        const blocked = [];
        document.addEventListener('securitypolicyviolation', event => { blocked.push(event.effectiveDirective); if (blocked.length === 3) resolve(blocked.sort()); });
        const script = document.createElement('script'); script.textContent = 'pwned = 1'; document.body.append(script);
        const image = document.createElement('img'); image.src = 'http://192.0.2.1/'; document.body.append(image);
        fetch('http://192.0.2.1/').catch(() => {});
    })";
    assert_eq!(
        browser.evaluate(injected),
        json!(["connect-src", "img-src", "script-src-elem"])
    );
    assert_eq!(browser.evaluate("typeof pwned"), "undefined");
}
