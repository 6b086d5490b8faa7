// NVRTC, but where a cubin is asked for, PTX is made and given. All else is done by NVIDIA's library, which lies under
// the same name in the folder real/ beside this one (nvidia_nvrtc.py puts it there).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void* P;

static void* real(const char* name) {
  static void* library;
  if (!library) {
    Dl_info here;
    char path[4096];
    dladdr((void*)&real, &here);
    const char* slash = strrchr(here.dli_fname, '/');
    const int folder = slash ? slash - here.dli_fname + 1 : 0;
    snprintf(path, sizeof path, "%.*sreal/%s", folder, here.dli_fname, here.dli_fname + folder);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (!library) fprintf(stderr, "softgpu: %s\n", dlerror()), abort();
  }
  return dlsym(library, name);
}

#define FORWARD(name, as)                                     \
  P name(P a, P b, P c, P d, P e, P f) {                      \
    static P (*call)(P, P, P, P, P, P);                       \
    if (!call) call = (P(*)(P, P, P, P, P, P))real(as);       \
    return call(a, b, c, d, e, f);                            \
  }
#define SAME(name) FORWARD(name, #name)
SAME(nvrtcAddNameExpression)
SAME(nvrtcCreateProgram)
SAME(nvrtcDestroyProgram)
SAME(nvrtcGetErrorString)
SAME(nvrtcGetLoweredName)
SAME(nvrtcGetLTOIR)
SAME(nvrtcGetLTOIRSize)
SAME(nvrtcGetNVVM)
SAME(nvrtcGetNVVMSize)
SAME(nvrtcGetNumSupportedArchs)
SAME(nvrtcGetOptiXIR)
SAME(nvrtcGetOptiXIRSize)
SAME(nvrtcGetPTX)
SAME(nvrtcGetPTXSize)
SAME(nvrtcGetProgramLog)
SAME(nvrtcGetProgramLogSize)
SAME(nvrtcGetSupportedArchs)
SAME(nvrtcVersion)

// For the virtual architecture of the same name: assembling PTX takes a third of the time, and nobody would run it.
int nvrtcCompileProgram(P program, int n, const char* const* given) {
  int (*compile)(P, int, const char* const*) = (int (*)(P, int, const char* const*))real("nvrtcCompileProgram");
  const char** options = malloc((n + 1) * sizeof *options);
  char target[64];
  int kept = 0;
  for (int i = 0; i < n; i++) {
    const char* sm = strstr(given[i], "=sm_");
    if (!strncmp(given[i], "--ptxas-options", 15)) continue;
    options[kept++] = given[i];
    if (sm && (!strncmp(given[i], "-arch", 5) || !strncmp(given[i], "--gpu-arch", 10))) {
      snprintf(target, sizeof target, "-arch=compute_%s", sm + 4);
      options[kept - 1] = target;
    }
  }
  const int status = compile(program, kept, options);
  free(options);
  return status;
}

FORWARD(nvrtcGetCUBIN, "nvrtcGetPTX")
FORWARD(nvrtcGetCUBINSize, "nvrtcGetPTXSize")
