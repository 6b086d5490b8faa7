// The products that CuPy asks of cuBLAS, in plain loops: float32 sums for 16-bit and float32 matrices, else float64.
// Done in their turn on the handle's stream, so that a captured product is done at each launch of its graph; all but the
// products of strided batches are done by the caller, when what was given to that stream before is done. Everything else
// that CuPy's extension links with says CUBLAS_STATUS_NOT_SUPPORTED (cublas_stubs.c).
#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <vector>

#include "runtime.h"

using u16 = uint16_t;
using i64 = long long;

namespace {

enum { OK = 0, INVALID = 7, NOT_SUPPORTED = 15 };
enum { R32F = 0, R64F = 1, R16F = 2, R8I = 3, R32I = 10, R16BF = 14 };

struct Handle {
  void* stream = nullptr;
  int math = 0, pointers = 0;
};

void wait(void* handle) { cudaStreamSynchronize(cudaStream_t(((Handle*)handle)->stream)); }

float half(u16 h) { return _cvtsh_ss(h); }
float bf16(u16 h) { return std::bit_cast<float>(unsigned(h) << 16); }
u16 to_bf16(float f) {
  unsigned b = std::bit_cast<unsigned>(f);
  return f != f ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
size_t size_of(int type) { return type == R64F ? 8 : type == R32F || type == R32I ? 4 : type == R8I ? 1 : 2; }

template <class T>
T get(const void* p, i64 i, int type) {
  switch (type) {
    case R32F: return T(((const float*)p)[i]);
    case R64F: return T(((const double*)p)[i]);
    case R16F: return T(half(((const u16*)p)[i]));
    case R8I: return T(((const int8_t*)p)[i]);
    case R32I: return T(((const int*)p)[i]);
    default: return T(bf16(((const u16*)p)[i]));
  }
}
template <class T>
void put(void* p, i64 i, int type, T v) {
  switch (type) {
    case R32F: ((float*)p)[i] = float(v); break;
    case R64F: ((double*)p)[i] = double(v); break;
    case R16F: ((u16*)p)[i] = _cvtss_sh(float(v), 0); break;
    case R32I: ((int*)p)[i] = int(v); break;
    default: ((u16*)p)[i] = to_bf16(float(v));
  }
}

// C (m, n) = alpha op(A) op(B) + beta C, in columns.
template <class T>
void gemm(int ta, int tb, int m, int n, int k, T alpha, const void* A, int at, i64 lda, const void* B, int bt, i64 ldb, T beta, void* C, int ct, i64 ldc) {
  std::vector<T> a(size_t(m) * k), column(k), sum(m);  // a: k columns of m
  for (int p = 0; p < k; p++)
    for (int i = 0; i < m; i++) a[size_t(p) * m + i] = get<T>(A, ta ? i64(i) * lda + p : i64(p) * lda + i, at);
  for (int j = 0; j < n; j++) {
    for (int p = 0; p < k; p++) column[p] = get<T>(B, tb ? i64(p) * ldb + j : i64(j) * ldb + p, bt);
    std::fill(sum.begin(), sum.end(), T(0));
    for (int p = 0; p < k; p++) {
      const T x = column[p];
      const T* from = &a[size_t(p) * m];
      T* to = sum.data();
#pragma GCC ivdep
      for (int i = 0; i < m; i++) to[i] += from[i] * x;
    }
    for (int i = 0; i < m; i++) {
      const i64 at = i64(j) * ldc + i;
      put<T>(C, at, ct, beta == 0 ? alpha * sum[i] : alpha * sum[i] + beta * get<T>(C, at, ct));
    }
  }
}

bool double_sums(int compute) { return compute == 70 || compute == 71 || compute == 72 || compute == 73; }
double scalar(const void* p, int compute) {
  if (compute == 64 || compute == 65) return half(*(const u16*)p);
  if (compute == 70 || compute == 71) return *(const double*)p;
  if (compute == 72 || compute == 73) return *(const int*)p;
  return *(const float*)p;
}
// What the library refuses: a leading dimension that is too small, or a type that it has no product for.
bool possible(int ta, int tb, int m, int n, int k, i64 lda, i64 ldb, i64 ldc) {
  auto most = [](i64 a, i64 b) { return a > b ? a : b; };
  const bool ok = m >= 0 && n >= 0 && k >= 0 && lda >= most(1, ta ? k : m) && ldb >= most(1, tb ? n : k) && ldc >= most(1, m);
  if (!ok) std::fprintf(stderr, "softgpu: cublas: m %d n %d k %d with leading dimensions %lld %lld %lld\n", m, n, k, lda, ldb, ldc);
  return ok;
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** h) { return *h = new Handle, OK; }
int cublasDestroy_v2(void* h) { return delete (Handle*)h, OK; }
int cublasGetVersion_v2(void*, int* v) { return *v = 120900, OK; }
int cublasSetStream_v2(void* h, void* s) { return ((Handle*)h)->stream = s, OK; }
// The memory is not needed: a product has no partial sums here.
int cublasSetWorkspace_v2(void*, void* p, size_t bytes) { return p || !bytes ? OK : INVALID; }
int cublasGetStream_v2(void* h, void** s) { return *s = ((Handle*)h)->stream, OK; }
int cublasSetMathMode(void* h, int m) { return ((Handle*)h)->math = m, OK; }
int cublasGetMathMode(void* h, int* m) { return *m = ((Handle*)h)->math, OK; }
int cublasSetPointerMode_v2(void* h, int m) { return ((Handle*)h)->pointers = m, OK; }
int cublasGetPointerMode_v2(void* h, int* m) { return *m = ((Handle*)h)->pointers, OK; }

int cublasGemmStridedBatchedEx(void* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda, i64 sa, const void* B, int bt, int ldb, i64 sb, const void* beta,
                               void* C, int ct, int ldc, i64 sc, int batch, int compute, int) {
  if (!possible(ta, tb, m, n, k, lda, ldb, ldc)) return INVALID;
  const double scale = scalar(alpha, compute), keep = scalar(beta, compute);  // host memory: read by the call
  softgpu::on(((Handle*)h)->stream, [=] {
    for (int b = 0; b < batch; b++) {
      const char *pa = (const char*)A + b * sa * i64(size_of(at)), *pb = (const char*)B + b * sb * i64(size_of(bt));
      char* pc = (char*)C + b * sc * i64(size_of(ct));
      if (double_sums(compute)) gemm<double>(ta, tb, m, n, k, scale, pa, at, lda, pb, bt, ldb, keep, pc, ct, ldc);
      else gemm<float>(ta, tb, m, n, k, float(scale), pa, at, lda, pb, bt, ldb, float(keep), pc, ct, ldc);
    }
    return 0;
  });
  return OK;
}
int cublasGemmEx(void* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int at, int lda, const void* B, int bt, int ldb, const void* beta, void* C, int ct, int ldc, int compute, int algo) {
  return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, A, at, lda, 0, B, bt, ldb, 0, beta, C, ct, ldc, 0, 1, compute, algo);
}
int cublasSgemmEx(void* h, int ta, int tb, int m, int n, int k, const float* alpha, const void* A, int at, int lda, const void* B, int bt, int ldb, const float* beta, void* C, int ct, int ldc) {
  return cublasGemmEx(h, ta, tb, m, n, k, alpha, A, at, lda, B, bt, ldb, beta, C, ct, ldc, 68, 0);
}

#define REAL(letter, T, type, compute)                                                                                                                                                  \
  int cublas##letter##gemm_v2(void* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* A, int lda, const T* B, int ldb, const T* beta, T* C, int ldc) {                     \
    return cublasGemmEx(h, ta, tb, m, n, k, alpha, A, type, lda, B, type, ldb, beta, C, type, ldc, compute, 0);                                                                           \
  }                                                                                                                                                                                       \
  int cublas##letter##gemmStridedBatched(void* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* A, int lda, i64 sa, const T* B, int ldb, i64 sb, const T* beta, T* C,     \
                                         int ldc, i64 sc, int batch) {                                                                                                                    \
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, A, type, lda, sa, B, type, ldb, sb, beta, C, type, ldc, sc, batch, compute, 0);                                           \
  }                                                                                                                                                                                       \
  int cublas##letter##gemv_v2(void* h, int ta, int m, int n, const T* alpha, const T* A, int lda, const T* x, int incx, const T* beta, T* y, int incy) {                                  \
    wait(h);                                                                                                                                                                              \
    const int rows = ta ? n : m, inner = ta ? m : n;                                                                                                                                      \
    for (int i = 0; i < rows; i++) {                                                                                                                                                      \
      T sum = 0;                                                                                                                                                                          \
      for (int p = 0; p < inner; p++) sum += (ta ? A[i64(i) * lda + p] : A[i64(p) * lda + i]) * x[i64(p) * incx];                                                                          \
      y[i64(i) * incy] = *alpha * sum + (*beta == 0 ? 0 : *beta * y[i64(i) * incy]);                                                                                                      \
    }                                                                                                                                                                                     \
    return OK;                                                                                                                                                                            \
  }                                                                                                                                                                                       \
  int cublas##letter##dot_v2(void* h, int n, const T* x, int incx, const T* y, int incy, T* out) {                                                                                          \
    wait(h);                                                                                                                                                                              \
    double sum = 0;                                                                                                                                                                       \
    for (int i = 0; i < n; i++) sum += double(x[i64(i) * incx]) * double(y[i64(i) * incy]);                                                                                               \
    *out = T(sum);                                                                                                                                                                        \
    return OK;                                                                                                                                                                            \
  }                                                                                                                                                                                       \
  int cublas##letter##ger_v2(void* h, int m, int n, const T* alpha, const T* x, int incx, const T* y, int incy, T* A, int lda) {                                                            \
    wait(h);                                                                                                                                                                              \
    for (int j = 0; j < n; j++)                                                                                                                                                           \
      for (int i = 0; i < m; i++) A[i64(j) * lda + i] += *alpha * x[i64(i) * incx] * y[i64(j) * incy];                                                                                    \
    return OK;                                                                                                                                                                            \
  }                                                                                                                                                                                       \
  int cublas##letter##geam(void* h, int ta, int tb, int m, int n, const T* alpha, const T* A, int lda, const T* beta, const T* B, int ldb, T* C, int ldc) {                                 \
    wait(h);                                                                                                                                                                              \
    std::vector<T> c(size_t(m) * n);                                                                                                                                                      \
    for (int j = 0; j < n; j++)                                                                                                                                                           \
      for (int i = 0; i < m; i++)                                                                                                                                                         \
        c[size_t(j) * m + i] = (*alpha == 0 ? 0 : *alpha * A[ta ? i64(i) * lda + j : i64(j) * lda + i]) + (*beta == 0 ? 0 : *beta * B[tb ? i64(i) * ldb + j : i64(j) * ldb + i]);           \
    for (int j = 0; j < n; j++)                                                                                                                                                           \
      for (int i = 0; i < m; i++) C[i64(j) * ldc + i] = c[size_t(j) * m + i];                                                                                                             \
    return OK;                                                                                                                                                                            \
  }
REAL(S, float, R32F, 68)
REAL(D, double, R64F, 70)

}  // extern "C"
