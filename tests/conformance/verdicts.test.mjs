import assert from 'node:assert/strict'
import { test } from 'node:test'
import { counts, differences, flaws, verdicts } from './verdicts.mjs'

const tests = new Map([
  ['a', { kind: 'required', dependsOn: [] }],
  ['b', { kind: 'optimal', dependsOn: ['a'] }],
  ['c', { kind: 'check', dependsOn: ['b'] }]
])
const failed = ['Assertion', 'Response 2 comes from cache']
const unready = ['Setup', 'Response 1 status is 502, not 200']

function check (results, expectedVerdicts, expected, expectedProblems) {
  const found = verdicts(tests, results)
  assert.deepEqual([...found.values()], expectedVerdicts)
  assert.deepEqual(differences(tests, found, expected, results), expectedProblems)
}

test('all passing is as expected', () => {
  check({ a: true, b: true, c: true }, ['pass', 'pass', 'pass'], {}, [])
})

test('a failed check is counted and no more', () => {
  const results = { a: true, b: true, c: failed }
  check(results, ['pass', 'pass', 'fail'], {}, [])
  assert.deepEqual(counts(tests, verdicts(tests, results)), {
    required: { pass: 1 }, optimal: { pass: 1 }, check: { fail: 1 }
  })
})

test('what depends on a failed test does not pass', () => {
  check({ a: failed, b: true, c: true }, ['fail', 'dependency', 'dependency'], {}, [
    'a (required): "fail": Assertion: Response 2 comes from cache',
    'b (optimal): "dependency": it passes by itself'
  ])
})

test('a listed difference is expected, with its verdict', () => {
  const listed = { b: { result: 'fail' } }
  check({ a: true, b: failed, c: true }, ['pass', 'fail', 'dependency'], listed, [])
  check({ a: true, b: unready, c: true }, ['pass', 'setup', 'dependency'], listed, [
    'b (optimal): expected "fail", found "setup": Setup: Response 1 status is 502, not 200'
  ])
})

test('a listed test that passes is a problem', () => {
  check({ a: true, b: true, c: true }, ['pass', 'pass', 'pass'], { b: { result: 'fail' } }, [
    'b (optimal) passes: take it out of expected.json'
  ])
})

test('a test that was not set up is a problem, whatever its kind', () => {
  check({ a: true, b: true, c: unready }, ['pass', 'pass', 'setup'], {}, [
    'c (check): "setup": Setup: Response 1 status is 502, not 200'
  ])
  check({ a: true, b: true, c: ['Setup', 'retry'] }, ['pass', 'pass', 'retry'], {}, ['c (check): "retry": Setup: retry'])
  check({ a: true, b: true, c: ['AbortError', 'timed out'] }, ['pass', 'pass', 'error'], {}, [
    'c (check): "error": AbortError: timed out'
  ])
})

test('each listed difference names a test and a section', () => {
  const listed = { a: { result: 'fail', reason: 'RFC 9111 §5.4: …' }, b: { result: 'fail' }, z: { reason: 'RFC 9213 §2' } }
  assert.deepEqual(flaws(tests, listed), [
    "b: expected.json gives no reason with an RFC's section",
    'z: expected.json names no test of the suite'
  ])
})
