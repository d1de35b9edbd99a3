// The script of the pages. Without it, everything except uploads works.
(() => {
  'use strict';

  // This file is not deferred, so that the theme is set before the first paint.
  const root = document.documentElement;
  root.classList.add('js');
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const setTheme = () => { root.dataset.bsTheme = dark.matches ? 'dark' : 'light'; };
  setTheme();
  dark.addEventListener('change', setTheme);

  const byID = (id) => document.getElementById(id);
  const hasherURL = document.currentScript.dataset.hasher;

  // visible returns text in which characters that are invisible or change the
  // direction are shown as the server shows them: "[U+202E]".
  const visible = (text) => text.replace(/[^\p{L}\p{M}\p{N}\p{P}\p{S} \n\r\t]/gu,
    (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`);

  // el returns an element. Strings are text, not HTML.
  function el(tag, attributes = {}, ...children) {
    const e = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, name === 'aria-label' ? visible(value) : value);
    e.append(...children.map((c) => (typeof c === 'string' ? visible(c) : c)));
    return e;
  }

  // ---- messages ----

  let toastTimer;

  // say shows a message in a live region.
  function say(place, kind, text, link) {
    const box = el('div', { class: `alert alert-${kind} py-2 mb-0` }, text);
    if (link) box.append(' ', el('a', { class: 'alert-link', href: link.href }, link.text));
    if (place === byID('status')) {
      clearTimeout(toastTimer);
      box.className = `alert alert-${kind} alert-dismissible shadow mb-0`;
      const close = el('button', { type: 'button', class: 'btn-close', 'aria-label': 'Close the message' });
      close.addEventListener('click', () => place.replaceChildren());
      box.append(close);
      if (kind !== 'danger') toastTimer = setTimeout(() => box.remove(), 8000);
    }
    place.replaceChildren(box);
  }

  const announce = (text) => { byID('announce').textContent = visible(text); };

  // problemOf returns the detail of an error answer.
  async function problemOf(res) {
    try {
      const p = await res.json();
      if (p.detail) return p.detail;
    } catch { /* not JSON */ }
    if (res.status === 413) {
      return 'A proxy in front of this server refuses requests of this size: allow larger ones in its settings (nginx: client_max_body_size 0).';
    }
    return `The server answered with status ${res.status}.`;
  }

  // logIn is the link to the log-in page, which leads back to this page.
  const logIn = () => ({ text: 'Log in', href: `/ui/login?next=${encodeURIComponent(location.pathname + location.search)}` });
  const unreachable = 'The server cannot be reached. Try again.';

  // ---- refreshing ----

  const refreshEvery = 2000;
  let pressed = false; // a refresh must not replace the button that is pressed

  function refresh() {
    const live = byID('live');
    if (live && window.htmx) window.htmx.trigger(live, 'refresh');
  }

  function tick() {
    if (document.visibilityState === 'visible' && !pressed) refresh();
  }

  // The page of the images has its query in its URL, others have theirs in the element.
  const liveURL = () => {
    const url = byID('live').getAttribute('hx-get');
    return location.pathname === '/ui/images' ? url + location.search : url;
  };
  const isLive = (e) => e.target instanceof Element && e.target.id === 'live';

  // placeOf returns the IDs of the places near an element of a fragment: its row,
  // the next and the previous one, and the heading of the fragment.
  function placeOf(element) {
    const fragment = element?.closest('[data-version]');
    if (!fragment) return [];
    const row = element.closest('tr[id], li[id]');
    return [row, row?.nextElementSibling, row?.previousElementSibling].flatMap((e) => e?.id || []).concat(`${fragment.id}-title`);
  }

  // anchorOf returns the elements in sight, the first of which must not move when others
  // change, and where they are.
  function anchorOf() {
    return [...document.querySelectorAll('#rows tr[id], #about [id], main h2[id]')]
      .map((e) => ({ id: e.id, top: e.getBoundingClientRect().top }))
      .filter(({ top }) => top >= byID('top').offsetHeight && top < innerHeight);
  }

  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [sheet];

  // keepPlace scrolls so that the first of these elements that is still there is where it was.
  function keepPlace(anchors) {
    sheet.replaceSync(`:root { --head: ${byID('top').offsetHeight}px; }`);
    const a = anchors.find(({ id }) => byID(id));
    if (a) scrollBy({ top: byID(a.id).getBoundingClientRect().top - a.top, behavior: 'instant' });
  }

  function watchLive() {
    let focused = []; // the places for the focus if its element is removed
    let anchor; // an element that must not move, and where it is
    let jobs = new Map();
    // Details that were opened stay open.
    Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, e) => name !== 'open' || e.tagName !== 'DETAILS';
    const statuses = () => new Map([...document.querySelectorAll('.job')].map((j) => [j.id, j.dataset.status]));
    keepPlace([]);
    showChanges();

    document.addEventListener('htmx:configRequest', (e) => {
      if (!isLive(e)) return;
      e.detail.path = liveURL();
      for (const f of document.querySelectorAll('[data-version]')) e.detail.parameters[`v-${f.id}`] = f.dataset.version;
    });
    // Do not leave a page that lists uploads for the log-in page.
    document.addEventListener('htmx:beforeOnLoad', (e) => {
      if (!isLive(e) || e.detail.xhr.status !== 401 || !byID('uploads').hasChildNodes()) return;
      e.preventDefault();
      if (!byID('status').hasChildNodes()) say(byID('status'), 'danger', 'You are no longer logged in.', logIn());
    });
    document.addEventListener('htmx:beforeSwap', (e) => {
      focused = placeOf(document.activeElement);
      if (isLive(e)) anchor = anchorOf();
      jobs = statuses();
      // Drop answers to requests from before a search.
      if (isLive(e) && (pressed || e.detail.pathInfo.requestPath !== liveURL())) e.detail.shouldSwap = false;
    });
    document.addEventListener('htmx:afterRequest', (e) => {
      if (isLive(e)) byID('offline').hidden = e.detail.xhr.status !== 0;
      // Without its element, the focus moves to the nearest place.
      const place = document.activeElement === document.body && focused.map(byID).find(Boolean);
      if (place) {
        place.setAttribute('tabindex', '-1');
        place.focus({ preventScroll: true });
      }
      focused = [];
      const ends = [...document.querySelectorAll('.job')].filter((j) => {
        const was = jobs.get(j.id);
        return was && was !== j.dataset.status && ['completed', 'failed'].includes(j.dataset.status);
      });
      if (ends.length > 0) announce(ends.map((j) => `${j.dataset.name}: ${j.dataset.stage ? `${j.dataset.stage} ` : ''}${j.dataset.status}`).join('. '));
      jobs = statuses();
      showChanges();
      if (anchor) keepPlace(anchor);
      anchor = undefined;
    });
    document.addEventListener('htmx:pushedIntoHistory', () => {
      const query = new URLSearchParams(location.search);
      byID('sort').value = query.get('sort') || 'name';
      if (document.activeElement !== byID('q')) byID('q').value = query.get('q') || '';
      // The filters of the page stay those of a search.
      for (const f of document.querySelectorAll('#search [data-filter]')) f.remove();
      for (const [name, value] of query) {
        if (!['q', 'sort', 'cursor', 'limit'].includes(name)) byID('search').append(el('input', { type: 'hidden', name, value, 'data-filter': '' }));
      }
    });
    for (const [down, up] of [['pointerdown', 'pointerup'], ['keydown', 'keyup']]) {
      addEventListener(down, (e) => { pressed = down === 'pointerdown' || e.key === ' '; }, true);
      addEventListener(up, () => { pressed = false; }, true);
    }
    for (const end of ['pointercancel', 'dragend', 'blur']) addEventListener(end, () => { pressed = false; });
    setInterval(tick, refreshEvery);
    document.addEventListener('visibilitychange', tick);
  }

  // showChanges updates what the script adds to the server's fragments.
  function showChanges() {
    localTimes();
    showRates();
    showFailures();
    showSelection();
    mark();
  }

  // localTimes shows times in the time zone of the browser.
  function localTimes() {
    const two = (n) => String(n).padStart(2, '0');
    const dateOf = (t) => `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
    for (const e of document.querySelectorAll('[data-local]')) {
      const t = new Date(e.dataset.local);
      e.textContent = `${dateOf(t)} ${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
    }
    for (const e of document.querySelectorAll('time[data-date]')) e.textContent = dateOf(new Date(e.dateTime));
    for (const e of document.querySelectorAll('time[title]')) e.title = new Date(e.dateTime).toLocaleString();
  }

  const rates = new Map(); // by the ID of a job: the last times and bytes

  // showRates adds rate and time left to the running jobs, and their progress to the rows
  // of their images.
  function showRates() {
    const now = performance.now();
    const running = document.querySelectorAll('#running .job[data-status=running]');
    const ids = new Set([...running].map((j) => j.id));
    for (const id of rates.keys()) if (!ids.has(id)) rates.delete(id);
    for (const j of running) {
      const bar = j.querySelector('progress');
      if (!bar?.max || !bar.hasAttribute('value')) continue;
      let samples = rates.get(j.id);
      if (!samples) rates.set(j.id, samples = []);
      if (samples.at(-1)?.[1] !== bar.value) samples.push([now, bar.value]);
      while (samples.length > 2 && now - samples[0][0] > 15000) samples.shift();
      const [then, before] = samples[0];
      const rate = (bar.value - before) / ((now - then) / 1000);
      j.querySelector('[data-rate]').textContent = now - then > 500 && rate > 0
        ? `, ${sizeText(rate)}/s, ${durationText((bar.max - bar.value) / rate)} left` : '';
      for (const row of document.querySelectorAll('#rows tr[data-batch]')) {
        const b = JSON.parse(row.dataset.batch);
        if (row.dataset.src !== j.dataset.src && b.name !== j.dataset.name) continue;
        const own = row.querySelector('progress');
        if (own) [own.max, own.value] = [bar.max, bar.value];
      }
    }
  }

  const title = document.title;

  // showFailures counts them in the title.
  function showFailures() {
    const n = byID('failures')?.dataset.count;
    document.title = n > 0 ? `(${n}) ${title}` : title;
  }

  // ---- selected rows ----

  const selected = new Map(); // what can be done with a row, by its ID

  // showSelection checks the boxes of the selected rows, which a refresh has unchecked, and
  // shows what can be done with them.
  function showSelection() {
    const bar = byID('batch');
    if (!bar || !byID('rows') && !selected.size) return;
    const rows = [...document.querySelectorAll('#rows tr[data-batch]')];
    for (const row of rows) {
      if (selected.has(row.id)) selected.set(row.id, JSON.parse(row.dataset.batch));
      byID(`${row.id}-pick`).checked = selected.has(row.id);
    }
    const all = byID('pick-all');
    if (all) {
      all.checked = rows.length > 0 && rows.every((r) => selected.has(r.id));
      all.indeterminate = !all.checked && rows.some((r) => selected.has(r.id));
    }
    bar.hidden = selected.size === 0;
    if (bar.hidden) return bar.replaceChildren();
    const list = [...selected.values()];
    const counted = (field) => list.filter((b) => b[field]?.length).length;
    const text = `${selected.size} selected`;
    const buttons = [['fetch', 'Fetch'], ['hash', 'Check'], ['delete', 'Delete…']].filter(([field]) => counted(field))
      .map(([field, label]) => ({ field, label: `${label}${counted(field) < list.length ? ` (${counted(field)})` : ''}` }));
    const shown = JSON.stringify([text, buttons]);
    if (bar.dataset.shown === shown && bar.hasChildNodes()) return;
    bar.dataset.shown = shown;
    bar.replaceChildren(el('span', { class: 'fw-semibold' }, text));
    for (const { field, label } of buttons) {
      const b = el('button', { type: 'button', id: `batch-${field}`, class: `btn btn-sm ${field === 'delete' ? 'btn-outline-danger' : 'btn-outline-secondary'}` }, label);
      b.addEventListener('click', () => (field === 'delete' ? askDelete(list) : runBatch(field, list)));
      bar.append(b);
    }
    const clear = el('button', { type: 'button', id: 'batch-clear', class: 'btn btn-sm btn-link' }, 'Select none');
    clear.addEventListener('click', () => { selected.clear(); showSelection(); byID('pick-all')?.focus(); });
    bar.append(clear);
  }

  document.addEventListener('change', (e) => {
    if (!e.target.matches('.pick input')) return;
    const rows = e.target.id === 'pick-all' ? [...document.querySelectorAll('#rows tr[data-batch]')] : [e.target.closest('tr')];
    for (const row of rows) {
      if (e.target.checked) selected.set(row.id, JSON.parse(row.dataset.batch));
      else selected.delete(row.id);
    }
    showSelection();
  });

  // askDelete asks before it deletes all images of a list.
  function askDelete(list) {
    const some = list.filter((b) => b.delete?.length);
    const names = el('ul', { class: 'small list-unstyled' });
    for (const b of some.slice(0, 20)) names.append(el('li', { class: 'text-break' }, el('bdi', {}, b.name)));
    if (some.length > 20) names.append(el('li', {}, `and ${some.length - 20} more`));
    const yes = el('button', { type: 'button', class: 'btn btn-danger', id: 'delete-selected' }, 'Delete');
    yes.addEventListener('click', () => { byID('dialog').close('yes'); runBatch('delete', some); });
    byID('dialog-body').replaceChildren(
      el('h2', { class: 'h5', id: 'confirm-title' }, `Delete ${some.length} ${some.length === 1 ? 'image' : 'images'}?`),
      el('p', {}, 'The objects are removed from the image root, and the URLs from the catalog, with the bytes that were fetched from them. This cannot be undone. Images of the manifest stay.'),
      names, el('div', { class: 'd-flex justify-content-end gap-2' },
        el('button', { type: 'button', class: 'btn btn-outline-secondary', 'data-close': '' }, 'Keep'), yes));
    byID('dialog').returnValue = '';
    byID('dialog').showModal();
  }

  // runBatch does one thing with each image of a list, and says what failed.
  async function runBatch(field, list) {
    const forms = list.flatMap((b) => {
      switch (field) {
        case 'fetch': return b.fetch ? [[b.name, '/catalog/downloads', { src: b.fetch }]] : [];
        case 'hash': return b.hash ? [[b.name, '/catalog/hashes', { name: b.hash }]] : [];
        default: return (b.delete ?? []).map((path) => [b.name, path, {}]);
      }
    });
    const failed = [];
    for (const [i, [name, path, form]] of forms.entries()) {
      say(byID('status'), 'secondary', `${i + 1} of ${forms.length}: ${name}`);
      try {
        const res = await fetch(path, { method: 'POST', headers: { Accept: 'application/json' }, body: new URLSearchParams(form) });
        if (res.status === 401) return say(byID('status'), 'danger', 'You are no longer logged in.', logIn());
        if (!res.ok) failed.push(`${name}: ${await problemOf(res)}`);
      } catch {
        failed.push(`${name}: ${unreachable}`);
      }
    }
    selected.clear();
    const done = { fetch: 'queued', hash: 'queued', delete: 'deleted' }[field];
    if (failed.length) say(byID('status'), 'danger', `${failed.length} of ${forms.length} failed. ${failed.slice(0, 5).join(' ')}`);
    else say(byID('status'), 'success', `${list.filter((b) => b[field]?.length).length} ${done}.`);
    showSelection();
    refresh();
  }

  // ---- adding by URL ----

  let found; // what the server last said about a URL

  // lookUp asks the server about the URL in the form: name, size, and checksum lists
  // beside it.
  async function lookUp() {
    const url = byID('image-url').value.trim();
    const place = byID('found');
    if (found?.url === url) return;
    found = { url };
    if (!/^[a-z]+:\/\/[^/]+\/./i.test(url)) return place.replaceChildren();
    place.replaceChildren('Asking the source…');
    const mine = found;
    try {
      const res = await fetch('/catalog/sources', {
        method: 'POST', headers: { Accept: 'application/json', 'Content-Type': 'application/json' }, body: JSON.stringify({ image_url: url }),
      });
      if (mine !== found) return;
      if (!res.ok) return place.replaceChildren(el('span', { class: 'text-danger-emphasis' }, await problemOf(res)));
      const s = await res.json();
      if (mine !== found) return;
      const text = [s.name, s.size_bytes === null ? 'size unknown' : sizeText(s.size_bytes)];
      if (s.sha_url) {
        byID('sha-url').value = s.sha_url;
        text.push(`will be verified against ${s.sha_url}`);
      } else if (s.sha256) text.push('the registry has its digest');
      else text.push('no checksum list was found beside it: give one, or the digest, or it is listed by what comes');
      if (s.known) text.push('it is in the catalog already');
      place.replaceChildren(el('bdi', {}, text.join(' · ')), ...(s.known ? [' ', askAgain()] : []));
    } catch {
      if (mine === found) place.replaceChildren(unreachable);
    }
  }

  function watchAdd() {
    const input = byID('image-url');
    let timer;
    input.addEventListener('input', () => {
      byID('sha-url').value = '';
      clearTimeout(timer);
      timer = setTimeout(lookUp, 400);
    });
    if (input.value) lookUp();
  }

  const fetchFrom = (src) => fetch('/catalog/downloads', { method: 'POST', headers: { Accept: 'application/json' }, body: new URLSearchParams({ src }) });

  // added fetches an image that was added, if the form says so, and shows its row.
  async function added(answer) {
    if (byID('fetch-now').checked) {
      const res = await fetchFrom(answer.src);
      if (!res.ok) say(byID('status'), 'danger', await problemOf(res));
    }
    closeAdd(answer.name);
  }

  // closeAdd empties and closes the dialog that adds images, and shows the row of one.
  function closeAdd(name) {
    byID('add-url').reset();
    byID('found').replaceChildren();
    found = undefined;
    if (byID('add')?.open) byID('add').close('done');
    marked = name;
  }

  // known fetches the image whose URL is in the catalog already, if the form says so and
  // gives no digest. Else it offers to ask the source again.
  async function known(form, place) {
    if (!byID('fetch-now').checked || byID('sha256').value.trim()) {
      say(place, 'warning', 'This URL is in the catalog already. ');
      return place.firstChild.append(askAgain());
    }
    const res = await fetchFrom(byID('image-url').value);
    if (!res.ok) return say(place, 'danger', await problemOf(res));
    const { name, status } = await res.json();
    place.replaceChildren();
    closeAdd(name);
    say(byID('add') ? byID('status') : place, 'success', status === 'completed' ? `${name} is cached already.` : `Fetch of ${name} queued.`);
    refresh();
  }

  // askAgain returns the button that asks the source of the URL in the form again.
  function askAgain() {
    const button = el('button', { type: 'button', class: 'btn btn-sm btn-outline-secondary', 'data-ask-again': '' }, 'Ask its source again');
    button.addEventListener('click', () => send(byID('add-url'), { refresh: 'true' }, 'The source of {name} was asked again.'));
    return button;
  }

  let marked; // the name of the image that was added last

  // mark scrolls to the row of the image that was added, and marks it for a while.
  function mark() {
    if (!marked) return;
    const name = [...document.querySelectorAll('#rows [data-name]')].find((a) => a.title === visible(marked));
    if (!name) return;
    marked = undefined;
    const row = name.closest('tr');
    row.classList.add('marked');
    row.scrollIntoView({ block: 'nearest' });
    setTimeout(() => row.classList.remove('marked'), 6000);
  }

  // ---- forms ----

  // send sends a form with further fields, and says done when it was done.
  async function send(form, further = {}, done = form.dataset.done) {
    if (form.dataset.sending) return;
    form.dataset.sending = 'yes';
    const button = form.querySelector('button:not([type=button])');
    button?.setAttribute('aria-disabled', 'true');
    const place = form.querySelector('[data-result]') || form.closest('#confirm')?.querySelector('[data-result]') || byID('status');
    if (form.dataset.busy) say(place, 'secondary', form.dataset.busy);
    try {
      const res = await fetch(form.getAttribute('action'), {
        method: 'POST', headers: { Accept: 'application/json' }, body: new URLSearchParams([...new FormData(form), ...Object.entries(further)]),
      });
      if (res.status === 401) return say(place, 'danger', 'You are no longer logged in.', logIn());
      if (res.status === 409 && form.id === 'add-url') return await known(form, place);
      if (!res.ok) return say(place, 'danger', await problemOf(res));
      const answer = res.headers.get('Content-Type')?.includes('json') ? await res.json() : {};
      done = done.replace('{name}', answer.name ?? 'the image');
      if (form.id === 'add-url') {
        await added(answer);
        say(byID('add')?.open === false ? byID('status') : place, 'success', done);
      } else if (form.closest('dialog')) {
        byID('dialog').close('done');
        say(byID('status'), 'success', done);
      } else if (form.closest('#confirm')) {
        location.assign('/ui/images');
      } else {
        say(place, 'success', done);
      }
      refresh();
    } catch {
      say(place, 'danger', unreachable);
    } finally {
      delete form.dataset.sending;
      button?.removeAttribute('aria-disabled');
    }
  }

  // ask shows a confirmation page in the dialog, and reports whether there is one.
  async function ask(url) {
    const dialog = byID('dialog');
    const body = byID('dialog-body');
    body.replaceChildren();
    await window.htmx.ajax('GET', url, { target: body, select: '#confirm', swap: 'innerHTML' });
    if (!byID('confirm')) return false;
    dialog.returnValue = '';
    dialog.showModal();
    return true;
  }

  async function askBefore(form) {
    const opener = document.activeElement?.id;
    const url = `${form.getAttribute('action')}?${new URLSearchParams(new FormData(form))}`;
    try {
      if (!await ask(url)) {
        say(byID('status'), 'secondary', 'It does not exist any more.');
        return refresh();
      }
    } catch {
      return say(byID('status'), 'danger', unreachable);
    }
    // A refresh may have replaced the button that opened the dialog.
    byID('dialog').addEventListener('close', () => { if (opener) byID(opener)?.focus({ preventScroll: true }); }, { once: true });
  }

  document.addEventListener('submit', (e) => {
    const form = e.target;
    if (form.hasAttribute('data-api')) {
      e.preventDefault();
      send(form);
    } else if (form.hasAttribute('data-confirm') && window.htmx && byID('dialog')) {
      e.preventDefault();
      askBefore(form);
    } else if (form.hasAttribute('data-choice')) {
      e.preventDefault();
      byID('dialog').close('yes');
    }
  });

  document.addEventListener('click', (e) => {
    const close = e.target.closest('[data-close]');
    if (close?.closest('dialog')) {
      e.preventDefault();
      close.closest('dialog').close('');
    }
    const open = e.target.closest('[data-dialog]');
    if (open && byID(open.dataset.dialog)) {
      e.preventDefault();
      byID(open.dataset.dialog).showModal();
      byID('image-url').focus();
    }
    const copy = e.target.closest('[data-copy]');
    if (copy) copyText(copy);
  });

  async function copyText(button) {
    const text = button.dataset.copy;
    try {
      // Only pages from HTTPS or localhost have a clipboard.
      if (navigator.clipboard) await navigator.clipboard.writeText(text);
      else copyOld(text);
      const was = button.textContent;
      button.textContent = 'Copied';
      announce('Copied.');
      setTimeout(() => { button.textContent = was; }, 1500);
    } catch {
      say(byID('status'), 'warning', `The browser does not let this page copy. Copy it from here: ${text}`);
    }
  }

  function copyOld(text) {
    const area = el('textarea', { class: 'visually-hidden', 'aria-hidden': 'true' });
    area.value = text;
    document.body.append(area);
    const focused = document.activeElement;
    area.select();
    const copied = document.execCommand('copy');
    area.remove();
    focused?.focus();
    if (!copied) throw new Error('not copied');
  }

  // ---- uploads ----

  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

  function sizeText(n) {
    let i = 0;
    while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
    return `${i && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[i]}`;
  }

  function durationText(seconds) {
    if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
    if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
    return `${Math.floor(seconds / 3600)} h ${Math.round(seconds % 3600 / 60)} min`;
  }

  const firstWait = 1000;
  const longestWait = 15000;
  const stallTime = 30000;
  const rateTime = 5000; // the rate is that of the last seconds
  const mostRefusals = 8; // by a server that is there and fails

  const longestTry = 600000;

  const prefix = 'imageroot-upload:';
  const fileKey = (file) => `${file.size}:${file.lastModified}:${file.name}`;

  // kept survives a reload if the browser allows that. It has for each upload the
  // file, and for each part that was sent the ETag and SHA-256.
  const kept = {
    files() {
      try {
        const all = Object.entries(localStorage).filter(([k]) => k.startsWith(prefix) && !k.slice(prefix.length).includes(':'));
        return new Map(all.map(([k, file]) => [k.slice(prefix.length), file]));
      } catch { return new Map(); }
    },
    get(...key) { try { return localStorage.getItem(prefix + key.join(':')); } catch { return null; } },
    set(value, ...key) { try { localStorage.setItem(prefix + key.join(':'), value); } catch { /* not allowed */ } },
    remove(id) {
      try {
        for (const k of Object.keys(localStorage)) if (k.startsWith(prefix + id)) localStorage.removeItem(k);
      } catch { /* not allowed */ }
    },
  };

  // ---- digests ----

  let hasher;
  let hashes = 0;
  const hashing = new Map(); // requests of the worker by ID

  // sha256 returns the digest of a Blob, which a worker computes.
  function sha256(blob) {
    return new Promise((resolve, reject) => {
      if (!hasher) {
        hasher = new Worker(hasherURL);
        hasher.addEventListener('message', ({ data }) => {
          hashing.get(data.id).resolve(data.sum);
          hashing.delete(data.id);
        });
        hasher.addEventListener('error', () => {
          for (const h of hashing.values()) h.reject(new Refused('This browser cannot compute the digest of the file: reload the page and choose the file again.'));
          hashing.clear();
          hasher = null;
        });
      }
      const id = ++hashes;
      hashing.set(id, { resolve, reject });
      hasher.postMessage({ id, blob });
    });
  }

  // A Refused is an error that another try would not change.
  class Refused extends Error {}
  class Unreadable extends Refused {}
  class Cancelled extends Error {}

  function assembling(view) {
    return view.error ? `all bytes are uploaded; ${view.error}: trying again` : 'all bytes are uploaded; the server assembles them';
  }

  const active = new Set(); // the uploads of this page that have not ended

  class Upload {
    constructor(file, id, replace) {
      this.file = file;
      this.id = id;
      this.replace = replace;
      this.condition = replace ? {} : { 'If-None-Match': '*' };
      this.etags = [];
      this.cancelled = false;
      this.samples = [];
      this.bar = el('progress', { class: 'bar', max: '1', value: '0', 'aria-label': `Upload of ${file.name}` });
      this.text = el('div', { class: 'small text-body-secondary' }, 'waiting');
      this.button = el('button', { type: 'button', class: 'btn btn-sm btn-outline-danger', 'aria-label': `Cancel the upload of ${file.name}` }, 'Cancel');
      this.button.addEventListener('click', () => this.cancel());
      this.li = el('li', { class: 'upload' },
        el('div', { class: 'd-flex align-items-center gap-2' }, el('span', { class: 'fw-semibold text-break me-auto' }, file.name), this.button),
        this.bar, this.text);
      this.li.dataset.state = 'waiting';
      byID('uploads').append(this.li);
      active.add(this);
    }

    state(state, text) {
      this.li.dataset.state = state;
      this.text.textContent = visible(text);
      this.text.className = state === 'failed' ? 'small text-danger-emphasis text-break' : 'small text-body-secondary text-break';
    }

    cancel() {
      this.cancelled = true;
      this.xhr?.abort();
      this.wake?.();
      if (this.li.dataset.state !== 'waiting') return;
      this.li.remove();
      active.delete(this);
    }

    check() { if (this.cancelled) throw new Cancelled(); }

    // wait ends early if the browser is online again or the upload is cancelled.
    wait(ms) {
      return new Promise((resolve) => {
        const done = () => { clearTimeout(timer); removeEventListener('online', done); resolve(); };
        const timer = setTimeout(done, ms);
        addEventListener('online', done);
        this.wake = done;
      });
    }

    // trying calls f until its answer is good or final, or for longestTry.
    async trying(f) {
      const began = performance.now();
      let refusals = 0;
      for (let wait = firstWait; ; wait = Math.min(2 * wait, longestWait)) {
        this.check();
        let why = 'connection lost';
        try {
          const res = await f();
          if (res.ok) return res;
          if (res.status === 401) throw new Refused('You are no longer logged in. Log in and choose the file again: the upload resumes.');
          if (res.status === 412) throw new Refused('Another image of this name was uploaded meanwhile. Choose the file again to replace it.');
          const detail = await problemOf(res);
          if (res.status < 500 && res.status !== 408 && res.status !== 429 || res.status === 507 || ++refusals >= mostRefusals) throw new Refused(detail);
          why = detail;
        } catch (err) {
          if (err instanceof Refused) throw err;
        }
        this.check();
        if (performance.now() - began > longestTry) throw new Refused(`${why}. Choose the file again later: the upload resumes.`);
        this.samples = [];
        this.state('retrying', `${why}: trying again in ${durationText(wait / 1000)}`);
        await this.wait(wait);
      }
    }

    call(method, url, body, headers) {
      return this.trying(() => fetch(url, {
        method, cache: 'no-store',
        headers: body ? { 'Content-Type': 'application/json', Accept: 'application/json', ...headers } : { Accept: 'application/json' },
        body: body && JSON.stringify(body),
      }));
    }

    async view() { return (await this.call('GET', `/uploads/${this.id}`)).json(); }

    // run ends when the bytes are sent or the upload has failed. While the server
    // assembles the image, other files are sent.
    run() {
      return new Promise((sent) => {
        this.upload(sent).catch((err) => this.fail(err)).finally(() => {
          active.delete(this);
          sent();
        });
      });
    }

    async upload(sent) {
      const view = await this.begin();
      if (view.status === 'uploading') {
        await this.sendParts(view);
        await this.call('POST', `/uploads/${this.id}/complete`, { etags: this.etags, replace: this.replace }, this.condition);
      }
      sent();
      await this.finish();
      kept.remove(this.id);
      this.bar.value = 1;
      this.button.remove();
      this.state('done', `uploaded, ${sizeText(this.file.size)}`);
      announce(`${this.file.name} is uploaded.`);
      refresh();
    }

    fail(err) {
      active.delete(this);
      if (err instanceof Cancelled) return this.discard();
      if (err instanceof Unreadable && this.id) this.forget(); // it cannot be resumed
      this.button.remove();
      this.bar.remove();
      this.state('failed', err instanceof Refused ? err.message : `The upload failed: ${err.message}`);
      announce(`Upload of ${this.file.name} failed. ${err.message}`);
    }

    // begin resumes the upload of an earlier page if it is of this file, or begins
    // a new one.
    async begin() {
      if (this.id) {
        const view = await this.view();
        if (view.status !== 'uploading' || await this.compare(view)) {
          document.querySelector(`.upload[data-id="${this.id}"]`)?.remove();
          return view;
        }
        announce(`The uploaded part of ${this.file.name} is of another file. The upload begins again.`);
      }
      this.id = null;
      const view = await (await this.call('POST', '/uploads', { name: this.file.name, size_bytes: this.file.size }, this.condition)).json();
      this.id = view.id;
      kept.set(fileKey(this.file), this.id);
      return view;
    }

    // compare reports whether the uploaded parts are of this file. Parts that this
    // browser has not sent are sent again.
    async compare(view) {
      for (const part of view.parts) {
        const [etag, sum] = kept.get(view.id, part.number)?.split(' ') ?? [];
        if (!part.done || part.etag !== etag) continue;
        this.check();
        this.bar.value = (part.number - 1) / view.parts.length;
        this.state('comparing', 'comparing the file with the uploaded part');
        if (await sha256(await this.read(view, part)) !== sum) return false;
        this.etags[part.number - 1] = etag;
      }
      return true;
    }

    // read returns a copy of the bytes of a part, which is both hashed and sent,
    // even if the file changes.
    async read(view, part) {
      const from = (part.number - 1) * view.part_size;
      try {
        const bytes = await this.file.slice(from, from + part.size_bytes).arrayBuffer();
        if (bytes.byteLength === part.size_bytes) return new Blob([bytes]); // of memory, unlike the slice
      } catch { /* as if it were short */ }
      throw new Unreadable('The file cannot be read: it was changed, moved or deleted after it was chosen, or is a folder. Choose it again.');
    }

    // sendParts sends the missing parts in order, since the server hashes them as
    // they arrive.
    async sendParts(view) {
      let done = 0;
      for (const part of view.parts) if (this.etags[part.number - 1]) done += part.size_bytes;
      if (done > 0) announce(`The upload of ${this.file.name} resumes.`);
      for (const part of view.parts) {
        if (this.etags[part.number - 1]) continue;
        const bytes = await this.read(view, part);
        const sum = sha256(bytes);
        let again = false;
        const res = await this.trying(async () => {
          if (again) await this.view(); // its error says more than a proxy's: logged out, aborted
          again = true;
          return this.putPart(part, bytes, (sent) => this.progress(done + sent));
        });
        const etag = res.headers.get('ETag')?.replace(/^W\/|"/g, '');
        if (!etag) throw new Refused('The store does not show ETags to this page: the CORS rule of its bucket must expose them (ExposeHeaders: ETag).');
        this.etags[part.number - 1] = etag;
        kept.set(`${etag} ${await sum}`, this.id, part.number);
        done += part.size_bytes;
        this.progress(done);
      }
    }

    // putPart sends a part. A presigned URL expires after some hours (403, or 400 if
    // the credentials that signed it expired): then it asks the server for another
    // one. The store also answers 400 to a stalled body, which is worth another try.
    async putPart(part, body, progress) {
      const res = await this.put(part.url, body, progress);
      if (res.status !== 403 && res.status !== 400 || new URL(part.url, location).origin === location.origin) return res;
      const view = await this.view();
      if (!view.parts) throw new Refused(`The upload is ${view.status} already.`);
      part.url = view.parts[part.number - 1].url;
      const again = await this.put(part.url, body, progress);
      return again.status === 400 ? new Response(null, { status: 503 }) : again;
    }

    // put sends bytes with XMLHttpRequest, since fetch reports no progress.
    put(url, body, progress) {
      return new Promise((resolve, reject) => {
        const xhr = new XMLHttpRequest();
        this.xhr = xhr;
        let stall;
        const alive = () => { clearTimeout(stall); stall = setTimeout(() => xhr.abort(), stallTime); };
        const lost = () => { clearTimeout(stall); reject(new Error('connection lost')); };
        xhr.upload.addEventListener('progress', (e) => { alive(); progress(e.loaded); });
        xhr.addEventListener('load', () => {
          clearTimeout(stall);
          if (xhr.status === 0) return lost();
          resolve(new Response(xhr.response, { status: xhr.status, headers: { ETag: xhr.getResponseHeader('ETag') ?? '' } }));
        });
        for (const end of ['error', 'abort', 'timeout']) xhr.addEventListener(end, lost);
        xhr.open('PUT', url);
        alive();
        xhr.send(body);
      });
    }

    progress(sent) {
      const now = performance.now();
      this.samples.push([now, sent]);
      while (this.samples.length > 2 && now - this.samples[0][0] > rateTime) this.samples.shift();
      const [then, before] = this.samples[0];
      const rate = (sent - before) / ((now - then) / 1000);
      this.bar.value = sent / this.file.size;
      let text = `${sizeText(sent)} of ${sizeText(this.file.size)}`;
      if (now - then > 500 && rate > 0) text += `, ${sizeText(rate)}/s, ${durationText((this.file.size - sent) / rate)} left`;
      this.state('uploading', text);
    }

    // finish waits until the server has assembled the image.
    async finish() {
      for (;;) {
        this.check();
        const view = await this.view();
        if (view.status === 'completed') return;
        if (view.status === 'failed') {
          kept.remove(this.id);
          throw new Refused(view.error || 'The server could not assemble the image.');
        }
        this.button.disabled = !view.error; // between two tries it can be cancelled
        this.state('completing', assembling(view));
        await this.wait(1000);
      }
    }

    async discard() {
      this.li.remove();
      announce(`The upload of ${this.file.name} is cancelled.`);
      if (this.id) await this.forget();
    }

    // forget aborts the upload, in the browser and on the server.
    async forget() {
      kept.remove(this.id);
      try {
        const res = await fetch(`/uploads/${this.id}`, { method: 'DELETE', headers: { Accept: 'application/json' } });
        if (!res.ok && res.status !== 404) say(byID('upload-result'), 'warning', `${this.file.name}: ${await problemOf(res)}`);
      } catch { /* the server aborts it later */ }
    }
  }

  const queue = [];
  let uploading = null;

  async function work() {
    if (uploading) return;
    while ((uploading = queue.shift())) {
      if (!uploading.cancelled) await uploading.run();
    }
    uploading = null;
  }

  // Tabs tell each other which uploads they run.
  const tabs = 'BroadcastChannel' in window ? new BroadcastChannel('imageroot-uploads') : null;
  const isHere = (id) => [...active].some((u) => u.id === id);
  tabs?.addEventListener('message', ({ data }) => { if (data.ask && isHere(data.ask)) tabs.postMessage({ here: data.ask }); });

  // isElsewhere reports whether another tab runs the upload.
  function isElsewhere(id) {
    if (!tabs) return false;
    return new Promise((resolve) => {
      const heard = ({ data }) => { if (data.here === id) end(true); };
      const end = (answer) => { tabs.removeEventListener('message', heard); clearTimeout(timer); resolve(answer); };
      const timer = setTimeout(end, 500, false);
      tabs.addEventListener('message', heard);
      tabs.postMessage({ ask: id });
    });
  }

  // confirmed asks before an upload replaces an image or runs beside another
  // upload of its name. It returns 'yes', '' if the answer is no, or 'free' if there
  // is nothing to ask.
  async function confirmed(what, name) {
    try {
      if (!await ask(`/ui/images/confirm?${new URLSearchParams({ what, key: name })}`)) return 'free';
    } catch {
      return 'free'; // the upload reports the error
    }
    return new Promise((resolve) => {
      byID('dialog').addEventListener('close', () => resolve(byID('dialog').returnValue === 'yes' ? 'yes' : ''), { once: true });
    });
  }

  // openUploads returns the uploads that have not ended, or undefined if the server
  // does not answer.
  async function openUploads() {
    try {
      return (await (await fetch('/uploads', { cache: 'no-store', headers: { Accept: 'application/json' } })).json()).uploads;
    } catch {
      return undefined;
    }
  }

  async function add(files) {
    for (const file of files) {
      for (const li of document.querySelectorAll('.upload[data-state=failed]')) if (li.querySelector('.fw-semibold').textContent === visible(file.name)) li.remove();
      if (file.size === 0) {
        new Upload(file).fail(new Refused('The file is empty.'));
        continue;
      }
      const same = (await openUploads() ?? []).filter((u) => u.name === file.name);
      const known = kept.files();
      let mine; // the upload of this file that an earlier page began
      let others = [...active].some((u) => u.file.name === file.name);
      for (const u of same) {
        if (isHere(u.id)) continue;
        if (known.get(u.id) === fileKey(file) && !await isElsewhere(u.id)) mine ??= u.id;
        else others = true;
      }
      const beside = others ? await confirmed('beside', file.name) : 'free';
      const replace = beside && await confirmed('replace', file.name);
      if (!replace) continue;
      queue.push(new Upload(file, mine, beside === 'yes' || replace === 'yes'));
      work();
    }
  }

  // addDropped adds the files of a drop, and reports folders.
  function addDropped(transfer) {
    const items = [...transfer.items].filter((i) => i.kind === 'file');
    const isFolder = items.map((i) => i.webkitGetAsEntry?.()?.isDirectory);
    const files = [...transfer.files]; // empty once the event is over
    files.forEach((file, i) => {
      if (isFolder[i]) new Upload(file).fail(new Refused('This is a folder: choose the image files in it.'));
    });
    add(files.filter((_, i) => !isFolder[i]));
  }

  // showOthers lists the uploads of others in the strip, or of other pages of this browser.
  async function showOthers() {
    const list = byID('others-uploads');
    setTimeout(showOthers, (list.hasChildNodes() ? 3 : 15) * refreshEvery); // asking costs the store a listing
    if (document.visibilityState !== 'visible') return;
    const known = kept.files();
    const open = (await openUploads() ?? []).filter((u) => !isHere(u.id) && !known.has(u.id));
    list.replaceChildren(...open.map((u) => {
      const text = u.status === 'completing' ? assembling(u) : `${sizeText(u.arrived_bytes)} of ${sizeText(u.size_bytes)}`;
      return el('li', { class: 'job', 'data-id': u.id },
        el('span', { class: 'job-name' }, el('bdi', {}, u.name), el('span', { class: 'text-body-secondary' }, ' · uploading elsewhere')),
        el('progress', { class: 'bar', max: u.size_bytes, value: u.arrived_bytes, 'aria-label': `Upload of ${u.name}` }),
        el('span', { class: 'small text-body-secondary' }, text));
    }));
  }

  // showUnfinished lists the uploads that earlier pages have begun.
  async function showUnfinished() {
    const known = kept.files();
    const open = known.size && await openUploads();
    if (!open) return;
    for (const id of known.keys()) {
      const u = open.find((o) => o.id === id);
      if (!u) kept.remove(id);
      if (!u || isHere(id) || await isElsewhere(id)) continue;
      const button = el('button', { type: 'button', class: 'btn btn-sm btn-outline-danger', 'aria-label': `Discard the upload of ${u.name}` }, 'Discard');
      const li = el('li', { class: 'upload', 'data-state': 'unfinished', 'data-id': id },
        el('div', { class: 'd-flex align-items-center gap-2' }, el('span', { class: 'fw-semibold text-break me-auto' }, u.name), button),
        el('div', { class: 'small text-body-secondary' }, u.status === 'completing'
          ? assembling(u)
          : `unfinished, ${sizeText(u.size_bytes)}: choose the file again to resume`));
      button.addEventListener('click', async () => {
        try {
          const res = await fetch(`/uploads/${id}`, { method: 'DELETE', headers: { Accept: 'application/json' } });
          if (!res.ok && res.status !== 404) return say(byID('upload-result'), 'danger', await problemOf(res));
        } catch {
          return say(byID('upload-result'), 'danger', unreachable);
        }
        kept.remove(id);
        li.remove();
      });
      byID('uploads').append(li);
    }
  }

  function watchUploads() {
    const input = byID('file');
    input.addEventListener('change', () => {
      const files = [...input.files];
      input.value = ''; // so that the same file can be chosen again
      if (byID('add')?.open) byID('add').close('');
      add(files);
    });
    const hint = byID('drop-hint');
    const has = (e, type) => [...(e.dataTransfer?.types ?? [])].includes(type);
    const takes = (e) => has(e, 'Files') || has(e, 'text/uri-list');
    addEventListener('dragover', (e) => {
      if (!takes(e)) return;
      e.preventDefault();
      if (hint) hint.hidden = false;
    });
    addEventListener('dragleave', (e) => { if (!e.relatedTarget && hint) hint.hidden = true; });
    addEventListener('dragend', () => { if (hint) hint.hidden = true; });
    addEventListener('drop', (e) => {
      if (!takes(e)) return;
      e.preventDefault(); // else the browser opens the file
      if (hint) hint.hidden = true;
      if (has(e, 'Files')) return addDropped(e.dataTransfer);
      const url = e.dataTransfer.getData('text/uri-list').split(/\r?\n/).find((l) => l && !l.startsWith('#'));
      if (!url) return;
      if (!byID('add')?.open) byID('add')?.showModal();
      byID('image-url').value = url;
      byID('image-url').dispatchEvent(new Event('input'));
    });
    addEventListener('beforeunload', (e) => { if (uploading) e.preventDefault(); });
    showUnfinished();
  }

  // foldFilters folds the filters of the events where they would fill the screen, unless
  // they have an error.
  function foldFilters() {
    const wide = matchMedia('(min-width: 992px)');
    const fold = () => { byID('filters').open = wide.matches || !!byID('filters').querySelector('[role=alert]'); };
    wide.addEventListener('change', fold);
    fold();
  }

  document.addEventListener('DOMContentLoaded', () => {
    if (byID('filters')) foldFilters();
    if (byID('live')) watchLive();
    if (byID('upload')) watchUploads();
    if (byID('add-url')) watchAdd();
    if (byID('others-uploads')) showOthers();
  });
})();
