# The CUDA kernels: whether to build them, for which GPUs, and the extension module `_cuda`.
#
# BNEXT_CUDA=AUTO asks for a GPU first, which costs nothing where there is none: the CUDA language
# is enabled, and its compiler tried, only where the module will be built.

# Machine code for the data centre's chips since Ampere and for Blackwell's workstations. It also
# runs on later chips of the same major version (8.6, 8.9, 10.3, 12.1). The drivers of others compile
# PTX when the module is loaded: compute_100 for 11.0, compute_120 for what comes after 12. Plain
# names, since the code of sm_90a and sm_100a runs on no other chip; clusters and distributed shared
# memory need no more than sm_90.
set(BNEXT_CUDA_DEFAULT_ARCHITECTURES 80-real 90-real 100 120)

set(bnext_ask_for_cuda "to build them for all GPUs: pip install -C cmake.define.BNEXT_CUDA=ON, "
                       "or cmake -DBNEXT_CUDA=ON")
list(JOIN bnext_ask_for_cuda "" bnext_ask_for_cuda)

macro(bnext_without_cuda reason)
  bnext_without(BNEXT_CUDA "CUDA kernels" "${reason}" "; ${bnext_ask_for_cuda}")
  return()
endmacro()

# The architectures of the GPUs of this machine, such as "90-real"; empty where there is none.
function(bnext_find_gpus result)
  set(${result} "" PARENT_SCOPE)
  find_program(nvidia_smi nvidia-smi NO_CACHE)
  if(NOT nvidia_smi)
    return()
  endif()
  execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE found RESULT_VARIABLE status ERROR_QUIET TIMEOUT 30)
  if(NOT status EQUAL 0)
    return()
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${found}")
  list(REMOVE_DUPLICATES found)
  list(TRANSFORM found REPLACE "\\." "")
  list(SORT found COMPARE NATURAL)
  list(TRANSFORM found APPEND "-real")
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

# nvcc where CMake would look for it, unless CMAKE_CUDA_COMPILER or CUDACXX names one.
function(bnext_find_nvcc result)
  if(NOT CMAKE_CUDA_COMPILER AND DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER $ENV{CUDACXX})
  endif()
  if(CMAKE_CUDA_COMPILER)
    find_program(nvcc ${CMAKE_CUDA_COMPILER} NO_CACHE)
  else()
    find_program(nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
                 PATH_SUFFIXES bin NO_CACHE)
  endif()
  set(${result} "${nvcc}" PARENT_SCOPE)
endfunction()

# Those of the architectures that this nvcc cannot build for; names like "all" it can.
function(bnext_unknown_architectures nvcc architectures result)
  execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(unknown "")
  foreach(architecture IN LISTS architectures)
    if(architecture MATCHES "^([0-9]+)[a-z]?(-real|-virtual)?$")  # 90a is not in the list, 90 is
      set(name sm_${CMAKE_MATCH_1})
      if(NOT known MATCHES "${name}[^0-9]")
        list(APPEND unknown ${name})
      endif()
    endif()
  endforeach()
  list(JOIN unknown ", " unknown)
  set(${result} "${unknown}" PARENT_SCOPE)
endfunction()

# Sets BNEXT_CUDA_FOUND, CMAKE_CUDA_COMPILER and CMAKE_CUDA_ARCHITECTURES for the caller.
function(bnext_find_cuda)
  set(BNEXT_CUDA_FOUND FALSE PARENT_SCOPE)
  if(NOT BNEXT_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "bnext: BNEXT_CUDA: expected AUTO, ON or OFF, got ${BNEXT_CUDA}")
  endif()
  if(BNEXT_CUDA STREQUAL "OFF")
    return()
  endif()
  if(BNEXT_CUDA STREQUAL "AUTO")
    bnext_find_gpus(gpus)
    if(NOT gpus)
      bnext_without_cuda("nvidia-smi names no GPU")
    endif()
  else()
    set(gpus ${BNEXT_CUDA_DEFAULT_ARCHITECTURES})
  endif()

  bnext_find_nvcc(nvcc)
  if(NOT nvcc)
    bnext_without_cuda("there is no CUDA compiler: nvcc is neither on PATH nor in CUDA_HOME, \
CUDA_PATH or /usr/local/cuda, and neither CMAKE_CUDA_COMPILER nor CUDACXX names one that is there")
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT version MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS 12.0)
    bnext_without_cuda("${nvcc} is no nvcc 12.0 or later, the first to have C++20")
  endif()
  if(CMAKE_CUDA_ARCHITECTURES STREQUAL "native")  # by name, which the module will say
    bnext_find_gpus(gpus)
    if(NOT gpus)
      bnext_without_cuda("CMAKE_CUDA_ARCHITECTURES is native, and nvidia-smi names no GPU")
    endif()
  elseif(CMAKE_CUDA_ARCHITECTURES)
    set(gpus ${CMAKE_CUDA_ARCHITECTURES})
  endif()
  bnext_unknown_architectures(${nvcc} "${gpus}" unknown)
  if(unknown)
    bnext_without_cuda("nvcc ${CMAKE_MATCH_1} does not know ${unknown} (a newer one may; \
CMAKE_CUDA_ARCHITECTURES chooses others)")
  endif()
  if(BNEXT_CUDA STREQUAL "AUTO" AND NOT CMAKE_CUDA_COMPILER)
    # A compiler that does not work must not cost the CPU kernels.
    set(ENV{CUDACXX} ${nvcc})
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      bnext_without_cuda("${nvcc} does not compile with this C++ compiler")
    endif()
  endif()
  set(CMAKE_CUDA_COMPILER ${nvcc} PARENT_SCOPE)
  set(CMAKE_CUDA_ARCHITECTURES "${gpus}" PARENT_SCOPE)
  set(BNEXT_CUDA_FOUND TRUE PARENT_SCOPE)
endfunction()

# What `_cuda` and `_cuda_emulated` are made of.
set(BNEXT_CUDA_SOURCES
  csrc/bindings/cuda_module.cpp
  csrc/bindings/errors.cpp
  csrc/core/cell_problem.cpp
  csrc/core/problem.cpp
  csrc/cuda/cell_launch.cpp
  csrc/cuda/cell_walk.cpp
  csrc/cuda/channel_launch.cpp
  csrc/cuda/environment.cpp
  csrc/cuda/kernel_choice.cpp
  csrc/cuda/launch.cpp
  csrc/cuda/plan.cpp
  csrc/cuda/plan_cache.cpp
  csrc/cuda/residency.cpp
  csrc/cuda/row_launch.cpp
  csrc/cuda/row_plan.cpp
  csrc/cuda/twice_launch.cpp)
set(BNEXT_CUDA_KERNELS "")
foreach(dtype float32 float64 float16 bfloat16)
  list(APPEND BNEXT_CUDA_KERNELS csrc/cuda/instances/passes_${dtype}.cu csrc/cuda/instances/phases_${dtype}.cu)
endforeach()
foreach(name cells per_channel small_slabs)
  list(APPEND BNEXT_CUDA_KERNELS csrc/cuda/instances/${name}.cu)
endforeach()
list(TRANSFORM BNEXT_CUDA_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/)
list(TRANSFORM BNEXT_CUDA_KERNELS PREPEND ${PROJECT_SOURCE_DIR}/)

function(bnext_add_cuda_module name)
  pybind11_add_module(${name} NO_EXTRAS ${BNEXT_CUDA_SOURCES} ${BNEXT_CUDA_KERNELS} ${ARGN})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_definitions(${name} PRIVATE BNEXT_MODULE=${name})
  set_property(SOURCE ${PROJECT_SOURCE_DIR}/csrc/bindings/cuda_module.cpp
               APPEND PROPERTY COMPILE_DEFINITIONS BNEXT_VERSION="${BNEXT_VERSION}")
  target_link_libraries(${name} PRIVATE bnext_flags)
  # Handlers for JAX check calls as all of bnext does.
  bnext_add_foreign_functions(${name} xla/gpu_handlers.cpp core/array_ref.cpp core/check.cpp
    core/check_in_place.cpp core/check_numbers.cpp core/check_rows.cpp)
  if(TARGET ${name}_xla)
    set_property(SOURCE ${PROJECT_SOURCE_DIR}/csrc/bindings/cuda_module.cpp
                 APPEND PROPERTY COMPILE_DEFINITIONS BNEXT_XLA)
  endif()
  install(TARGETS ${name} DESTINATION bnext)
endfunction()
