"""Visits tools/web_demo.py in Chromium; run by test_web_demo.py with the Python that has gradio."""

import json
import sys

from playwright.sync_api import sync_playwright

FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync'
FLAGS += ' --disable-background-networking --disable-component-update'
SEEN = "text => [...document.querySelectorAll('textarea')].some(t => t.value.includes(text))"


def open_page(browser, address):
    page = browser.new_page(viewport={'width': 1200, 'height': 1400})
    page.goto(address, wait_until='domcontentloaded', timeout=60_000)
    page.wait_for_selector('input[type=file]', state='attached', timeout=60_000)
    return page


def upload(page, file):
    page.set_input_files('input[type=file]', file)


def prediction(page):
    """The lines below the prediction, without the time."""
    page.wait_for_function(SEEN, arg='with drawing', timeout=60_000)
    return page.locator('textarea').first.input_value().splitlines()[1:]


def error_after(page, file):
    """The message that the page shows for a file."""
    upload(page, file)
    toast = page.wait_for_selector('[data-testid=toast-body]', timeout=60_000)
    text = toast.inner_text()
    page.reload(wait_until='domcontentloaded')
    page.wait_for_selector('input[type=file]', state='attached', timeout=60_000)
    return text


def main(address, chromium, image, broken, huge, screenshot):
    seen = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        first, second = open_page(browser, address), open_page(browser, address)
        seen['broken'], seen['huge'] = error_after(first, broken), error_after(first, huge)
        for page in (first, second):
            upload(page, image)
        seen['found'] = [prediction(page) for page in (first, second)]
        sources = "() => [...document.querySelectorAll('img')].map(i => i.src)"
        before = len([s for s in first.evaluate(sources) if 'file=' in s])
        first.locator('img[src*="file="]').first.click()
        first.wait_for_function(
            "n => [...document.querySelectorAll('img')]"
            ".filter(i => i.src.includes('file=') && i.complete && i.naturalWidth).length > n",
            arg=before,
            timeout=60_000,
        )
        seen['explained'] = first.evaluate(
            "() => [...document.querySelectorAll('img')]"
            ".filter(i => i.src.includes('file=')).map(i => [i.naturalWidth, i.naturalHeight])"
        )
        first.screenshot(path=screenshot, full_page=True)
        browser.close()
    print(json.dumps(seen))


if __name__ == '__main__':
    main(*sys.argv[1:])
