// Recompute the input factor A of the first layer from x, and compare it with a test vector: the least that a reader
// of these files does.   node read.js softmax-regression.json ...   prints and exits 0, or 1
'use strict';
const fs = require('fs');

function matrix({ shape: [rows, columns], data }) {
  return Array.from({ length: rows }, (_, i) => data.slice(i * columns, (i + 1) * columns));
}

function secondMoment(x) {                                        // (1/N) sum of [x, 1] [x, 1]^T
  const a_bar = x.map((row) => [...row, 1]);
  const indices = a_bar[0].map((_, i) => i);
  return indices.map((i) => indices.map((j) => a_bar.reduce((sum, a) => sum + a[i] * a[j], 0) / a_bar.length));
}

function difference(problem) {                                    // as a part of the largest entry
  const A = matrix(problem.expected.A.value[0]);
  const ours = secondMoment(matrix(problem.x));
  const worst = Math.max(...A.flatMap((row, i) => row.map((entry, j) => Math.abs(ours[i][j] - entry))));
  return worst / Math.max(...A.flat().map(Math.abs));
}

const paths = process.argv.slice(2);
let right = paths.length > 0;
for (const path of paths) {
  const problem = JSON.parse(fs.readFileSync(path, 'utf8'));
  const found = difference(problem);
  console.log(`${path}: A[0] differs by ${found.toExponential(1)} of its largest entry`);
  right = right && found <= problem.expected.A.tolerance;
}
process.exit(right ? 0 : 1);
