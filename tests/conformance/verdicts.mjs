// What the suite's results mean, and how they differ from what is expected. Pure.

/** What became of a test by itself: pass, fail, setup, retry, error or untested. */
export function ownVerdict (result) {
  if (result === undefined) return 'untested'
  if (result === true) return 'pass'
  const [name, message] = result
  if (name === 'Assertion') return 'fail'
  if (name !== 'Setup') return 'error'
  return message === 'retry' ? 'retry' : 'setup'
}

/** Whether a verdict says nothing about the cache, so that the test deserves a second run. */
export const isUnsettled = verdict => ['untested', 'setup', 'retry', 'error'].includes(verdict)

/** By id; `dependency` where a test that this one builds on did not pass, as the suite judges. */
export function verdicts (tests, results) {
  const found = new Map()
  const judge = id => {
    if (!found.has(id)) {
      const met = (tests.get(id)?.dependsOn ?? []).every(other => judge(other) === 'pass')
      found.set(id, met ? ownVerdict(results[id]) : 'dependency')
    }
    return found.get(id)
  }
  for (const id of tests.keys()) judge(id)
  return found
}

/** Every way in which the verdicts are not the expected ones: a list of sentences. */
export function differences (tests, found, expected, results) {
  const problems = []
  for (const [id, verdict] of found) {
    const { kind } = tests.get(id)
    const listed = expected[id]
    const mustPass = kind !== 'check' || isUnsettled(verdict)
    if (listed !== undefined && verdict === 'pass') {
      problems.push(`${id} (${kind}) passes: take it out of expected.json`)
    } else if (listed !== undefined && listed.result !== verdict) {
      problems.push(`${id} (${kind}): expected "${listed.result}", found "${verdict}": ${explain(results[id])}`)
    } else if (listed === undefined && verdict !== 'pass' && mustPass) {
      problems.push(`${id} (${kind}): "${verdict}": ${explain(results[id])}`)
    }
  }
  return problems
}

/** What is wrong with the list of expected differences itself. */
export function flaws (tests, expected) {
  return Object.entries(expected).flatMap(([id, listed]) => {
    const unknown = tests.has(id) ? [] : [`${id}: expected.json names no test of the suite`]
    const justified = /\bRFC \d{4} §\d/.test(listed.reason ?? '')
    return justified ? unknown : [...unknown, `${id}: expected.json gives no reason with an RFC's section`]
  })
}

/** How many of each kind came to which verdict: `{ required: { pass: 160 }, … }`. */
export function counts (tests, found) {
  const table = { required: {}, optimal: {}, check: {} }
  for (const [id, verdict] of found) {
    const row = table[tests.get(id).kind]
    row[verdict] = (row[verdict] ?? 0) + 1
  }
  return table
}

const explain = result => (Array.isArray(result) ? result.join(': ') : 'it passes by itself')
