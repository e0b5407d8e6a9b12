// Search of the site, in place of MkDocs' own worker: its index drops Chinese words, and lunr's Chinese tokenizer
// needs a library that browsers do not have. The site is small, so every section is simply read.
// Messages, as search/main.js expects them: {init} -> {config}, {allowSearch}; {query} -> {results}.
const inWorker = typeof importScripts === "function";
let sections = [];

function init() {
  const request = new XMLHttpRequest();
  request.addEventListener("load", () => {
    const index = JSON.parse(request.responseText);
    load(index.docs);
    postMessage({ config: index.config });
    postMessage({ allowSearch: true });
  });
  request.open("GET", inWorker ? "search_index.json" : "/search/search_index.json");
  request.send();
}

function load(docs) {
  // A page comes whole, and again by its sections: those are enough.
  const divided = new Set(docs.filter((doc) => doc.location.includes("#")).map((doc) => doc.location.split("#")[0]));
  sections = docs.filter((doc) => !divided.has(doc.location)).map((doc) => ({ ...doc, lowTitle: doc.title.toLowerCase(), lowText: doc.text.toLowerCase() }));
}

// A run of Chinese characters as overlapping pairs: 冻结主干 -> 冻结 结主 主干.
function pairs(term) {
  const parts = term.match(/[\u3400-\u9fff]+|[^\u3400-\u9fff]+/g) || [];
  return parts.flatMap((part) =>
    /[\u3400-\u9fff]/.test(part) && part.length > 2
      ? Array.from({ length: part.length - 1 }, (_, at) => part.slice(at, at + 2))
      : [part]
  );
}

function score(section, terms) {
  let total = 0;
  for (const term of terms) {
    const inText = section.lowText.split(term).length - 1;
    const inTitle = section.lowTitle.includes(term) ? 20 : 0;
    if (inText + inTitle === 0) return 0; // every word must occur
    total += inTitle + Math.min(inText, 10);
  }
  return total;
}

function ranked(terms) {
  return sections
    .map((section) => ({ section, points: score(section, terms) }))
    .filter((found) => found.points > 0)
    .sort((a, b) => b.points - a.points)
    .slice(0, 30)
    .map(({ section }) => {
      const at = Math.max(0, section.lowText.indexOf(terms[0]) - 60);
      return { location: section.location, title: section.title, summary: section.text.slice(at, at + 200) };
    });
}

function search(query) {
  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = ranked(terms);
  return found.length > 0 ? found : ranked(terms.flatMap(pairs));
}

if (inWorker) {
  onmessage = (event) => {
    if (event.data.init) init();
    else if (event.data.query) postMessage({ results: search(event.data.query) });
  };
}
