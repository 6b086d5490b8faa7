// NVRTC, but where a cubin is asked for, the PTX that became that cubin is given. All else is done by NVIDIA's library,
// which lies under the same name in the folder real/ beside this one (nvidia_nvrtc.py puts it there).
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
SAME(nvrtcCompileProgram)
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
FORWARD(nvrtcGetCUBIN, "nvrtcGetPTX")
FORWARD(nvrtcGetCUBINSize, "nvrtcGetPTXSize")
